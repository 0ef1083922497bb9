"""Any transformers causal LM as a `LanguageModel`: the path that trades speed for generality.

It relies on transformers' own forward and cache: left-padded prefill once per distinct prompt, the cache
then expanded to that prompt's answers; right-padded scoring, where causality makes a mask unnecessary.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from sparring.lm.base import Completion, LanguageModel, PromptGroup, SamplingParams, Scores
from sparring.lm.choose import choose
from sparring.lm.head import head_scores
from sparring.lm.lora import adapters_disabled, has_adapters
from sparring.lm.probe import base_dtype, cast_copy, check_cache, checkpointed, has_plain_head, require_layers
from sparring.lm.rows import Row, completions, left_padded, right_padded, score_batches


class GenericLM:
    """A transformers causal LM in compute precision `dtype`, in eval mode, so without dropout.

    Where `dtype` is what most of the model's weights have, the module itself computes; else a copy of it does. LoRA
    adapters stay fp32 masters in the module: peft casts around them. `checkpointing` computes a layer's activations
    again in the backward pass instead of keeping them. `score_tokens` bounds the padded tokens of one scoring forward,
    `generate_tokens` the padded tokens (prompt and completion) of one generation batch.

    Raises ValueError for a model that this path can't run: an encoder-decoder, one without a transformers `Cache`
    (Mamba, RWKV), 4-bit weights that compute in another dtype, trained weights that aren't fp32, or checkpointing where
    no layers are known.
    """

    shares_prompts: bool = False

    def __init__(
        self,
        model: PreTrainedModel,
        dtype: torch.dtype,
        trainable: bool,
        *,
        checkpointing: bool = False,
        score_tokens: int = 2**14,
        generate_tokens: int = 2**18,
    ) -> None:
        _check_precision(model, dtype, trainable)
        self.master = model
        self.trainable = trainable
        self._score_tokens = score_tokens
        self._generate_tokens = generate_tokens
        self._module = self._computing(model, dtype, trainable).eval()
        self._copies = _trained_copies(self._module, model)
        self._accepts = set(inspect.signature(model.forward).parameters)
        self._equal_lengths = bool(getattr(model, "_is_stateful", False))
        config = model.config.get_text_config(decoder=True)
        self._positions: int | None = getattr(config, "max_position_embeddings", None)
        self._vocabulary: int = config.vocab_size
        self._adapters_off = False
        self._checkpointing = checkpointing
        if checkpointing:
            require_layers(self._module)
        self._plain_head = self._probe()

    def _computing(self, model: PreTrainedModel, dtype: torch.dtype, trainable: bool) -> PreTrainedModel:
        """The module that computes."""
        return model if base_dtype(model) == dtype else cast_copy(model, dtype, trainable)

    def _probe(self) -> bool:
        """Whether scores come straight from hidden states. Raises ValueError for a model without a usable cache."""
        check_cache(self._module)
        return has_plain_head(self._module)

    def without_adapters(self) -> GenericLM:
        """The base under the adapters, frozen: the same module, which computes with its adapters off.

        Raises ValueError for a model without adapters, whose base is what is trained.
        """
        if not has_adapters(self._module):
            raise ValueError("the model carries no adapters: its reference must be a frozen copy (open_frozen)")
        base = copy.copy(self)
        base.trainable, base._adapters_off, base._copies = False, True, []
        return base

    def _as_set(self) -> AbstractContextManager[None]:
        """The module as this view of it computes: with adapters or without."""
        return adapters_disabled(self._module) if self._adapters_off else nullcontext()

    # Generation

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Sequence[int]], n: int, params: SamplingParams, uniforms: np.ndarray
    ) -> list[list[Completion]]:
        """n completions of every prompt; see `LanguageModel.generate`."""
        total, steps = len(prompts) * n, params.max_new_tokens
        if any(token >= self._vocabulary for token in params.banned_ids):
            raise ValueError(f"banned_ids {params.banned_ids} go beyond the {self._vocabulary} tokens of the model")
        draws_RT: Tensor | None = None
        if params.temperature > 0:
            if uniforms.shape != (total, steps):
                raise ValueError(
                    f"uniforms must be [prompts * n, max_new_tokens] = {(total, steps)}, not {uniforms.shape}"
                )
            draws_RT = torch.tensor(uniforms, device=self._module.device)
        rows_of: dict[tuple[int, ...], list[int]] = {}
        for index, prompt in enumerate(prompts):
            self._check_length(len(prompt), steps, "max_new_tokens")
            rows_of.setdefault(tuple(prompt), []).extend(range(index * n, (index + 1) * n))
        done: dict[int, Completion] = {}
        with self._as_set():
            for batch in self._generation_batches(rows_of, steps):
                done |= self._generate_batch({prompt: rows_of[prompt] for prompt in batch}, params, draws_RT)
        return [[done[row] for row in range(p * n, (p + 1) * n)] for p in range(len(prompts))]

    def _generation_batches(
        self, rows_of: dict[tuple[int, ...], list[int]], steps: int
    ) -> Iterator[list[tuple[int, ...]]]:
        """Prompts of similar length (recurrent models: one length, as padding would enter the state)."""
        batch: list[tuple[int, ...]] = []
        rows = 0
        for prompt in sorted(rows_of, key=len):
            rows += len(rows_of[prompt])
            over = rows * (len(prompt) + steps) > self._generate_tokens
            if batch and (over or (self._equal_lengths and len(prompt) != len(batch[0]))):
                yield batch
                batch, rows = [], len(rows_of[prompt])
            batch.append(prompt)
        if batch:
            yield batch

    def _generate_batch(
        self, rows_of: dict[tuple[int, ...], list[int]], params: SamplingParams, draws: Tensor | None
    ) -> dict[int, Completion]:
        device, steps = self._module.device, params.max_new_tokens
        rows_R = [row for rows in rows_of.values() for row in rows]
        draws_RT = None if draws is None else draws[torch.tensor(rows_R, device=device)]
        ids_QT, mask_QT = (tensor.to(device) for tensor in left_padded(list(rows_of)))
        logits_QV, cache = self._step(ids_QT, mask_QT, (mask_QT.cumsum(1) - 1).clamp(min=0), None)
        # A is the rows still going: at first every answer of every prompt.
        source_A = torch.tensor([q for q, rows in enumerate(rows_of.values()) for _ in rows], device=device)
        cache.reorder_cache(cast(torch.LongTensor, source_A))
        logits_AV, mask_AT = logits_QV[source_A], mask_QT[source_A]
        position_A = mask_AT.sum(1)
        alive_A = torch.arange(len(rows_R), device=device)
        chosen_RT = torch.zeros(len(rows_R), steps, dtype=torch.long, device=device)
        logprobs_RT = torch.zeros(len(rows_R), steps, device=device)
        length_R = torch.zeros(len(rows_R), dtype=torch.long, device=device)
        stop = torch.tensor(params.stop_ids, dtype=torch.long, device=device)
        for t in range(steps):
            chosen_A, logprobs_A = choose(logits_AV, params, None if draws_RT is None else draws_RT[alive_A, t])
            chosen_RT[alive_A, t], logprobs_RT[alive_A, t] = chosen_A, logprobs_A
            length_R[alive_A] = t + 1
            keep = (~torch.isin(chosen_A, stop)).nonzero().squeeze(1)
            if t + 1 == steps or not len(keep):
                break
            if len(keep) < len(alive_A):
                cache.reorder_cache(cast(torch.LongTensor, keep))
                alive_A, chosen_A, mask_AT, position_A = (x[keep] for x in (alive_A, chosen_A, mask_AT, position_A))
            mask_AT = torch.cat([mask_AT, mask_AT.new_ones(len(alive_A), 1)], 1)
            logits_AV, cache = self._step(chosen_A.unsqueeze(1), mask_AT, position_A.unsqueeze(1), cache)
            position_A = position_A + 1
        return completions(rows_R, chosen_RT, logprobs_RT, length_R, params.stop_ids)

    def _step(self, ids_BT: Tensor, mask_BT: Tensor, positions_BT: Tensor, cache: Cache | None) -> tuple[Tensor, Cache]:
        """Logits at the last token [B, V], and the cache with these tokens added."""
        extra: dict[str, Any] = {"position_ids": positions_BT, "logits_to_keep": 1}
        out = self._module(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            past_key_values=cache,
            use_cache=True,
            **{name: value for name, value in extra.items() if name in self._accepts},
        )
        return out.logits[:, -1], out.past_key_values

    # Scoring

    def score(
        self,
        groups: Sequence[PromptGroup],
        *,
        temperature: float = 1.0,
        reference: LanguageModel | None = None,
        entropy: bool = False,
    ) -> Scores:
        """Log-probabilities of every completion token; see `LanguageModel.score`."""
        if reference is not None and not isinstance(reference, GenericLM):
            raise TypeError(f"a GenericLM needs a GenericLM as its reference, not {type(reference).__name__}")
        rows = [(group.prompt_ids, ids) for group in groups for ids in group.completions if ids]
        device = self._module.device
        if not rows:
            empty = torch.zeros(0, device=device)
            return Scores(empty, None if reference is None else empty, empty if entropy else None)
        targets_S = torch.tensor([token for _, ids in rows for token in ids], device=device)
        plain = self._plain_head and (reference is None or reference._plain_head)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trainable):
            states = self._states(rows, plain)
            ref_states = None
            if reference is not None:
                with torch.no_grad():
                    ref_states = reference._states(rows, plain)
            if not plain:
                return _logit_scores(states, targets_S, temperature, ref_states, entropy)
            return head_scores(
                states,
                self._head_weight,
                targets_S,
                temperature=temperature,
                ref_hidden_SD=ref_states,
                ref_weight_VD=None if reference is None else reference._head_weight,
                entropy=entropy,
            )

    @property
    def _head_weight(self) -> Tensor:
        return cast(nn.Linear, self._module.get_output_embeddings()).weight

    def _states(self, rows: Sequence[Row], plain: bool) -> Tensor:
        """What predicts each completion token, in row order: final hidden states [S, D], or logits [S, V]."""
        for prompt, ids in rows:
            self._check_length(len(prompt), len(ids), "the completion's length")
        counts = [len(ids) for _, ids in rows]
        start_of = np.concatenate([[0], np.cumsum(counts)])
        parts: list[Tensor] = []
        slots: list[np.ndarray] = []
        for batch in score_batches(rows, self._score_tokens):
            # The last token predicts nothing that is scored, so it isn't fed.
            ids_BT = right_padded([(*rows[i][0], *rows[i][1][:-1]) for i in batch]).to(self._module.device)
            first = min(len(rows[i][0]) for i in batch) - 1
            states_BTX = self._forward(ids_BT, plain, keep=ids_BT.shape[1] - first)
            T = states_BTX.shape[1]
            skipped = ids_BT.shape[1] - T
            picked = np.concatenate(
                [b * T - skipped + len(rows[i][0]) - 1 + np.arange(counts[i]) for b, i in enumerate(batch)]
            )
            parts.append(states_BTX.flatten(0, 1).index_select(0, torch.from_numpy(picked).to(ids_BT.device)))
            slots += [np.arange(start_of[i], start_of[i + 1]) for i in batch]
        order = np.argsort(np.concatenate(slots))
        return torch.cat(parts).index_select(0, torch.from_numpy(order).to(parts[0].device))

    def _forward(self, ids_BT: Tensor, plain: bool, keep: int) -> Tensor:
        """Hidden states at every position; or logits, at the last `keep` positions where the model can."""
        again = checkpointed(self._module) if self._checkpointing and torch.is_grad_enabled() else nullcontext()
        with self._as_set(), again:
            if plain:
                return self._hidden(ids_BT)
            extra = {"logits_to_keep": keep} if "logits_to_keep" in self._accepts else {}
            return self._module(input_ids=ids_BT, use_cache=False, **extra).logits

    def _hidden(self, ids_BT: Tensor) -> Tensor:
        return self._module.base_model(input_ids=ids_BT, use_cache=False)[0]

    def _check_length(self, prompt: int, more: int, setting: str) -> None:
        if prompt == 0:
            raise ValueError("a prompt must have at least one token; begin it with the bos token")
        if self._positions is not None and prompt + more > self._positions:
            raise ValueError(
                f"a prompt of {prompt} tokens and {more} more exceed the model's {self._positions} "
                f"positions; shorten the prompt or {setting}"
            )

    # Masters and compute copies

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the masters into the compute copies."""
        for copied, master in self._copies:
            copied.copy_(master)

    @torch.no_grad()
    def collect_gradients(self) -> None:
        """Add the compute copies' gradients to the masters' and clear them."""
        for copied, master in self._copies:
            if copied.grad is None:
                continue
            if master.grad is None:
                master.grad = copied.grad.to(master.dtype)
            else:
                master.grad.add_(copied.grad)
            copied.grad = None


def _check_precision(model: PreTrainedModel, dtype: torch.dtype, trainable: bool) -> None:
    quantised = getattr(model, "hf_quantizer", None) is not None
    if quantised and base_dtype(model) != dtype:
        raise ValueError(f"the 4-bit weights were loaded to compute in {base_dtype(model)}: load them for {dtype}")
    low = [name for name, p in model.named_parameters() if p.requires_grad and p.dtype != torch.float32]
    if trainable and low:
        raise ValueError(
            f"{low[0]} is {model.get_parameter(low[0]).dtype}, in which small updates would be rounded away: "
            "load what is trained as float32"
        )


def _trained_copies(module: PreTrainedModel, model: PreTrainedModel) -> list[tuple[Tensor, Tensor]]:
    """(compute copy, master) of every parameter that is trained; none where the module is the model itself."""
    if module is model:
        return []
    pairs = zip(module.parameters(), model.parameters(), strict=True)
    return [(copied, master) for copied, master in pairs if master.requires_grad]


def _logit_scores(
    logits_SV: Tensor, targets_S: Tensor, temperature: float, ref_logits_SV: Tensor | None, entropy: bool
) -> Scores:
    """The same as `head_scores`, by plain autograd over logits that the model computed itself."""
    logp_SV = torch.log_softmax(logits_SV.float() / temperature, -1)
    kl_S = entropy_S = None
    if ref_logits_SV is not None:
        ref_SV = torch.log_softmax(ref_logits_SV.float() / temperature, -1)
        kl_S = (logp_SV.exp() * (logp_SV - ref_SV)).sum(-1)
    if entropy:
        detached_SV = logp_SV.detach()
        entropy_S = -(detached_SV.exp() * detached_SV).sum(-1)
    return Scores(logp_SV.gather(1, targets_S.unsqueeze(1)).squeeze(1), kl_S, entropy_S)
