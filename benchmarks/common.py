"""What the benchmarks share: random models, our step, measured peaks and the floor they give."""

from __future__ import annotations

import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from sparring.advantages import standardised
from sparring.batching import to_examples, token_mean
from sparring.data import PromptSet, Row
from sparring.games.dataset import Dataset
from sparring.learner import Learner, SampledKL, Update
from sparring.lm.base import Completion, LanguageModel, PromptGroup, SamplingParams, Scores
from sparring.lm.load import open_frozen, open_lm
from sparring.losses import k3
from sparring.rendering import Renderer
from sparring.rewards.base import Reward
from sparring.roles import Role
from sparring.sampling.local import LocalSampler

VOCAB = 2048
BETA = 0.04
LR = 1e-6
TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
# Varied lengths: this share of the 2048 tokens ends an answer, and a random model draws each token with a
# probability near 1/2048, so lengths are geometric, cut at the longest allowed: mean about 119 of 256.
STOP_SHARE = 0.0070


@dataclass(frozen=True)
class Size:
    """A random Llama: heads of 64, none of them grouped, feed-forward of 4 × hidden, untied embeddings."""

    hidden: int
    layers: int

    @property
    def body(self) -> int:
        """Parameters of the layers' matrices."""
        return self.layers * (4 * self.hidden**2 + 3 * self.hidden * 4 * self.hidden)

    @property
    def head(self) -> int:
        """Parameters of the output embedding."""
        return VOCAB * self.hidden


SIZES = {"xs": Size(128, 4), "s": Size(256, 6), "m": Size(512, 8)}


@dataclass(frozen=True)
class Case:
    """One comparison: size, longest answer in tokens, whether answers end at random, N and G."""

    size: str
    tokens: int
    varied: bool
    queries: int = 8
    answers: int = 8

    @property
    def name(self) -> str:
        """Short, for tables."""
        return f"{self.size}-{self.tokens}-{'varied' if self.varied else 'full'}"

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end an answer; none where all run to the full length."""
        return tuple(range(3, 3 + round(STOP_SHARE * VOCAB))) if self.varied else ()


def make_prompts(case: Case) -> list[str]:
    """Prompts of 26 to 65 tokens, the same for every run."""
    rng = np.random.default_rng(0)
    return [" ".join(f"w{i}" for i in rng.integers(100, VOCAB, rng.integers(26, 66))) for _ in range(case.queries)]


def save_model(case: Case, folder: Path) -> None:
    """A random fp32 model and a word-level tokenizer.

    The tokenizer's own end token has an id that the model can't draw: only `stop_ids` end an answer.
    """
    logging.disable_progress_bar()
    size = SIZES[case.size]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=size.hidden,
        intermediate_size=4 * size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.hidden // 64,
        num_key_value_heads=size.hidden // 64,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
        dtype="float32",
    )
    model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = [VOCAB, *case.stop_ids]
    model.save_pretrained(folder)
    words = {"<pad>": 0, "<bos>": 1} | {f"w{i}": i for i in range(2, VOCAB)} | {"<eos>": VOCAB}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", chat_template=TEMPLATE
    ).save_pretrained(folder)


def reward(completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[float | None]:
    """TRL's signature, used by both sides: the share of even ids, so that every group has spread."""
    return [sum(i % 2 == 0 for i in ids) / len(ids) for ids in completion_ids]


class Clock:
    """Seconds by phase: the wall's, or this process's (cpu), which neighbours disturb less."""

    def __init__(self, cpu: bool = False) -> None:
        self.now = time.process_time if cpu else time.perf_counter
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add what runs inside to a phase."""
        start = self.now()
        try:
            yield
        finally:
            self.seconds[name] += self.now() - start

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, its time added to a phase."""

        def run(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return function(*args, **kwargs)

        return run

    def take(self, total: float, rest: str) -> dict[str, float]:
        """The phases since the last call and what is left of `total`, as `rest`."""
        taken, self.seconds = dict(self.seconds), defaultdict(float)
        return {**taken, rest: total - sum(taken.values()), "total": total}


class TimedModel:
    """A LanguageModel whose passes are timed by phase: {"score": "reference"} times score as "reference"."""

    def __init__(self, model: LanguageModel, clock: Clock, phases: dict[str, str]) -> None:
        self._model, self._clock, self._phases = model, clock, phases
        self.shares_prompts = model.shares_prompts

    def generate(
        self, prompts: Sequence[Sequence[int]], n: int, params: SamplingParams, uniforms: np.ndarray
    ) -> list[list[Completion]]:
        """See LanguageModel."""
        return self._timed("generate", prompts, n, params, uniforms)

    def score(
        self,
        groups: Sequence[PromptGroup],
        *,
        temperature: float = 1.0,
        reference: LanguageModel | None = None,
        entropy: bool = False,
    ) -> Scores:
        """See LanguageModel."""
        return self._timed("score", groups, temperature=temperature, reference=reference, entropy=entropy)

    def refresh(self) -> None:
        """See LanguageModel."""
        self._timed("refresh")

    def collect_gradients(self) -> None:
        """See LanguageModel."""
        self._timed("collect_gradients")

    def _timed(self, name: str, *args: Any, **kwargs: Any) -> Any:
        method = getattr(self._model, name)
        if name not in self._phases:
            return method(*args, **kwargs)
        return self._clock.timed(self._phases[name], method)(*args, **kwargs)


class SparringStep:
    """GRPO steps on our side: k3 in the loss, token mean, AdamW, compute copies of fp32 masters."""

    def __init__(self, case: Case, folder: Path, dtype: torch.dtype, token_budget: int, clock: Clock) -> None:
        self.clock = clock
        model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
        policy = open_lm(model, dtype, trainable=True)
        timed = TimedModel(policy, self.clock, {"generate": "generate", "refresh": "optimiser"})
        frozen = open_frozen(model, dtype)
        reference = TimedModel(frozen, self.clock, {"score": "reference"})
        renderer = Renderer(PreTrainedTokenizerFast.from_pretrained(folder))
        self._sampler = LocalSampler(timed, reference, renderer, stop_ids=case.stop_ids)
        optimizer = torch.optim.AdamW(model.parameters(), lr=LR, fused=True)
        optimizer.step = self.clock.timed("optimiser", optimizer.step)
        settings = Update(BETA, SampledKL(k3), max_grad_norm=1.0, token_budget=token_budget)
        self._learner = Learner(model, timed, reference, optimizer, settings)
        role = Role("solver", "{{ query }}", SamplingParams(case.tokens))
        prompts = PromptSet([Row(prompt) for prompt in make_prompts(case)], "prompts")
        self._game = Dataset(role, prompts, Reward(reward), case.queries, case.answers, standardised)
        self._step = 0

    def __call__(self) -> dict[str, Any]:
        """One step: seconds by phase, and the lengths that were sampled."""
        self._step += 1
        start = self.clock.now()
        turns = self._game.play(self._sampler.at(self._step))
        payoffs = self._game.payoffs(turns)
        advantages = self._game.baseline(turns, payoffs)
        examples = to_examples(turns, advantages, token_mean)
        with self.clock.phase("other"):
            self._game.metrics(turns, payoffs)
        self._learner.update(examples, LR)
        seconds = self.clock.take(self.clock.now() - start, "forward_backward")
        return {"seconds": seconds, "lengths": [len(turn.completion_ids) for turn in turns]}


@dataclass(frozen=True)
class Peaks:
    """What one core does: FLOP/s of a matrix product at 4096 and at 64 rows, bytes/s read from memory."""

    matrix: float
    small_matrix: float
    bandwidth: float


def measure_peaks(size: Size, repeats: int = 7) -> Peaks:
    """Best of several repeats by the wall, over this size's layer shapes and a square, in bf16 and fp32."""

    def rate(rows: int) -> float:
        h = size.hidden
        shapes = [(h, 3 * h), (h, 8 * h), (4 * h, h), (1024, 1024)]
        return max(
            _flops(rows, *shape, dtype, repeats) for shape in shapes for dtype in (torch.bfloat16, torch.float32)
        )

    data = torch.ones(2**26)  # 256 MiB, beyond any cache
    seconds = min(_seconds(data.sum) for _ in range(repeats))
    return Peaks(rate(4096), rate(64), data.numel() * 4 / seconds)


def _flops(rows: int, into: int, out: int, dtype: torch.dtype, repeats: int) -> float:
    x, weight = torch.randn(rows, into).to(dtype), torch.randn(out, into).to(dtype)
    loops = max(1, round(2e9 / (2 * rows * into * out)))

    def run() -> None:
        for _ in range(loops):
            torch.nn.functional.linear(x, weight)

    with torch.no_grad():
        run()
        return loops * 2 * rows * into * out / min(_seconds(run) for _ in range(repeats))


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def floor_seconds(size: Size, peaks: Peaks, prompts: Sequence[int], lengths: Sequence[int]) -> float:
    """The least a step can take: lengths in tokens, `lengths` prompt by prompt.

    Four forward passes' worth of matrix products (reference 1, forward 1, backward 2) over prompts once and
    answers, at the matrix peak; the prefill at the same; decoding at the small-batch rate; and the bytes that
    decoding reads at the bandwidth: the bf16 weights once a token, the bf16 cache with each prompt once for
    its answers. No attention arithmetic, no softmax, no optimiser: a real step can't reach it.
    """
    answers = len(lengths) // len(prompts)
    forward = 2 * size.body * (sum(prompts) + sum(lengths)) + 2 * size.head * sum(lengths)
    prefill = 2 * size.body * sum(prompts)
    decode = 2 * (size.body + size.head) * sum(lengths)
    groups = [lengths[i * answers : (i + 1) * answers] for i in range(len(prompts))]
    prefix = sum(p * max(group) for p, group in zip(prompts, groups, strict=True))
    own = sum(n * (n + 1) // 2 for n in lengths)
    cache_bytes = (prefix + own) * size.layers * 2 * size.hidden * 2
    weight_bytes = max(lengths) * (size.body + size.head) * 2
    return (
        (4 * forward + prefill) / peaks.matrix
        + decode / peaks.small_matrix
        + (cache_bytes + weight_bytes) / peaks.bandwidth
    )


def medians(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The median of each phase."""
    return {name: median(row.get(name, 0.0) for row in rows) for name in sorted({n for row in rows for n in row})}


def peak_memory() -> int:
    """This process's largest resident size so far, bytes.

    From /proc where there is one: ru_maxrss of a started process can carry over its parent's.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
