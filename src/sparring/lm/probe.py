"""What a transformers model turns out to be when tried: precision, cache, head, layers; and agreement with it."""

from __future__ import annotations

import copy
import functools
import inspect
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from sparring.lm.base import LanguageModel, PromptGroup, SamplingParams
from sparring.lm.lora import is_adapter_parameter

# Mean difference of log-probabilities, nats: bfloat16 stays well below, a wrong rotation or mask far above.
GAP = 0.1


def base_dtype(model: PreTrainedModel) -> torch.dtype:
    """The precision that most of a model's weights have. Adapters (fp32 masters), weights that transformers keeps in
    fp32, and packed 4-bit weights don't count."""
    counts: Counter[torch.dtype] = Counter()
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not is_adapter_parameter(name):
            counts[parameter.dtype] += parameter.numel()
    return counts.most_common(1)[0][0]


def cast_parameters(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Cast in place as `from_pretrained(dtype=...)` would: weights that a model wants in fp32 stay there, as do
    adapters, and buffers keep theirs (rotary frequencies need fp32)."""
    strict = [] if dtype == torch.float32 else model._keep_in_fp32_modules_strict or []
    kept = re.compile("|".join(re.escape(name).replace(r"\*", ".*") for name in strict) or "(?!)")
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not is_adapter_parameter(name):
            parameter.data = parameter.data.to(torch.float32 if kept.search(name) else dtype)


def cast_copy(model: PreTrainedModel, dtype: torch.dtype, trainable: bool) -> PreTrainedModel:
    """A copy with parameters in `dtype`."""
    copied = copy.deepcopy(model)
    cast_parameters(copied, dtype)
    for parameter in copied.parameters():
        parameter.requires_grad_(trainable and parameter.requires_grad)
    return copied


@contextmanager
def checkpointed(module: PreTrainedModel) -> Iterator[None]:
    """Forward passes in here keep one activation a layer and compute the rest again in the backward pass.

    transformers' own switch works in train mode only, which brings dropout, dropped layers and router noise along.
    Here the module stays in eval mode.
    """
    layers = _repeated_layers(module)
    before = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
    try:
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward


def require_layers(module: PreTrainedModel) -> None:
    """Raise ValueError unless `checkpointed` finds layers."""
    if not _repeated_layers(module):
        raise ValueError(
            f"{type(module).__name__} has no layers that can be checkpointed; set model.gradient_checkpointing=false"
        )


def _repeated_layers(module: PreTrainedModel) -> list[GradientCheckpointingLayer]:
    return [layer for layer in module.modules() if isinstance(layer, GradientCheckpointingLayer)]


def agrees(engine: LanguageModel, model: PreTrainedModel) -> str | None:
    """How an engine's log-probabilities part from those of transformers' own forward, or None where they don't.

    A dozen tokens are scored by both; then the engine writes four tokens and must score them as it wrote them.
    """
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    ids = [(7 + 131 * i) % vocabulary for i in range(12)]
    group = PromptGroup(tuple(ids[:6]), (tuple(ids[6:10]), tuple(ids[10:])))
    try:
        with torch.no_grad():
            scored = engine.score([group]).logprobs_S.float().cpu()
            theirs = torch.cat([_teacher_forced(model, group.prompt_ids, row) for row in group.completions])
            ((written,),) = engine.generate(
                [group.prompt_ids], 1, SamplingParams(4, temperature=0.0), np.empty((0, 0), np.float32)
            )
            again = engine.score([PromptGroup(group.prompt_ids, (written.ids,))]).logprobs_S.float().cpu()
    except Exception as error:  # noqa: BLE001 - whatever it is, the other engine may do without it
        return f"it failed with {type(error).__name__}: {error}"
    gaps = {
        "scores differ from transformers' by": (scored - theirs).abs().mean().item(),
        "scores differ from its own generation by": (again - torch.from_numpy(written.logprobs)).abs().mean().item(),
    }
    # A NaN compares as false.
    told = [f"its {what} {gap:.3g} nats a token" for what, gap in gaps.items() if not gap <= GAP]
    return " and ".join(told) or None


def _teacher_forced(model: PreTrainedModel, prompt: tuple[int, ...], completion: tuple[int, ...]) -> Tensor:
    """log-probabilities [S] of a completion by the model's own forward."""
    ids_BT = torch.tensor([[*prompt, *completion]], device=model.device)
    logp_TV = torch.log_softmax(model(input_ids=ids_BT, use_cache=False).logits[0, :-1].float(), -1)
    return logp_TV.gather(1, ids_BT[0, 1:, None]).squeeze(1)[len(prompt) - 1 :].cpu()


@torch.no_grad()
def check_cache(module: PreTrainedModel) -> None:
    """Raise ValueError unless the model is decoder-only and keeps its state in a transformers `Cache`."""
    name = type(module).__name__
    if module.config.is_encoder_decoder:
        raise ValueError(f"{name} is an encoder-decoder; use a decoder-only causal language model")
    cache = None
    if "past_key_values" in inspect.signature(module.forward).parameters:
        ids_BT = torch.zeros(1, 2, dtype=torch.long, device=module.device)
        cache = module(input_ids=ids_BT, use_cache=True).past_key_values
    if not isinstance(cache, Cache):
        raise ValueError(  # noqa: TRY004 - the model chosen is wrong, not the call
            f"{name} keeps its state in {type(cache).__name__}, not in a transformers Cache; "
            "use an attention or hybrid model that does"
        )


@torch.no_grad()
def has_plain_head(module: PreTrainedModel) -> bool:
    """Whether logits are exactly W · (the base model's last hidden state), so `head_scores` may stand in.

    The head's output is replaced by large random numbers: a softcap or scaling after it shows at any size
    of the weights, where comparing real logits would miss a softcap on small ones.
    """
    head = module.get_output_embeddings()
    # Exactly Linear: a subclass may hold packed 4-bit weights or adapters.
    if type(head) is not nn.Linear or head.bias is not None:
        return False
    ids_BT = torch.arange(4, device=module.device).remainder(head.out_features).unsqueeze(0)
    marks_BTV = torch.linspace(-90, 90, 4 * head.out_features, device=module.device, dtype=head.weight.dtype)
    marks_BTV = marks_BTV.view(1, 4, -1)
    seen: list[Tensor] = []

    def replace(_module: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> Tensor:
        seen.append(inputs[0])
        return marks_BTV

    handle = head.register_forward_hook(replace)
    try:
        logits_BTV = module(input_ids=ids_BT, use_cache=False).logits
    finally:
        handle.remove()
    hidden_BTD = module.base_model(input_ids=ids_BT, use_cache=False)[0]
    if len(seen) != 1 or hidden_BTD.dtype != head.weight.dtype:
        return False
    same_input = seen[0].shape == hidden_BTD.shape and torch.allclose(seen[0], hidden_BTD)
    return same_input and torch.equal(logits_BTV.to(marks_BTV.dtype), marks_BTV)
