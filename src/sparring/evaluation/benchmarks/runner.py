"""A model's answers to a benchmark, sampled and scored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from sparring.build import make_role
from sparring.domains import TestItem
from sparring.evaluation.benchmarks.base import Benchmark, BenchmarkReport, ItemResult
from sparring.roles import Role
from sparring.sampling.base import Sampler
from sparring.settings import RoleConfig
from sparring.types import ModelName, Prompt, Turn


@dataclass(frozen=True)
class BenchmarkRun:
    """What a run left.

    Attributes:
        report: the result.
        results: item by item.
        answers: the texts, item by item.
        truncated: share of the answers cut off at max_new_tokens.
        too_long: share of the answers never sampled, as their prompt left no room in the model's context; wrong.
    """

    report: BenchmarkReport
    results: tuple[ItemResult, ...]
    answers: tuple[tuple[str, ...], ...]
    truncated: float
    too_long: float


def benchmark_role(benchmark: Benchmark, settings: RoleConfig | None = None, *, temperature: float = 0.0) -> Role:
    """The role that answers: the benchmark's own prompt unless the settings name a file; never trained.

    Args:
        settings: prompt, system message, max_new_tokens and filters; None: the defaults. Their temperature is not used.
        temperature: 0 is greedy.
    """
    role = make_role(benchmark.name, benchmark.template, settings or RoleConfig(), weight=0.0, needs=("query",))
    return replace(role, sampling=replace(role.sampling, temperature=temperature))


def run_benchmark(
    benchmark: Benchmark,
    items: Sequence[TestItem],
    sampler: Sampler,
    role: Role,
    *,
    n: int = 1,
    batch: int = 64,
    pass_at: Sequence[int] = (),
    model: ModelName = "policy",
) -> BenchmarkRun:
    """Sample n answers an item, `batch` items at a time, and score them as they come.

    The sampler must be at the step that the draws shall derive from (`sampler.at(step)`); with a temperature, another
    batch draws other answers.

    Raises:
        ValueError: no items, n or batch below 1, several answers an item at temperature 0 (they would be equal), or a k
            of `pass_at` above n.
    """
    if not items:
        raise ValueError(f"{benchmark.name}: there is no item to answer")
    if n < 1 or batch < 1:
        raise ValueError(f"{benchmark.name}: n and batch must be at least 1, not {n} and {batch}")
    if n > 1 and role.sampling.temperature == 0:
        raise ValueError(f"{benchmark.name}: {n} answers an item at temperature 0 are all equal: raise it, or n=1")
    if any(not 1 <= k <= n for k in pass_at):
        raise ValueError(f"{benchmark.name}: pass@k needs k from 1 to n={n}, not {', '.join(map(str, pass_at))}")
    results: list[ItemResult] = []
    turns: list[Turn] = []
    for part in _batches(items, batch):
        given = sampler.sample(role, [_prompt(role, item) for item in part], n=n, model=model)
        turns += given
        results += benchmark.score(part, [[turn.text for turn in given[at : at + n]] for at in range(0, len(given), n)])
    return BenchmarkRun(
        benchmark.report(results, pass_at),
        tuple(results),
        tuple(tuple(turn.text for turn in turns[at : at + n]) for at in range(0, len(turns), n)),
        sum(turn.finish == "length" for turn in turns) / len(turns),
        sum(bool(turn.info.get("too_long")) for turn in turns) / len(turns),
    )


def _prompt(role: Role, item: TestItem) -> Prompt:
    return role.prompt(query=item.query, info={"query_text": item.query, "item_id": item.item_id})


def _batches(items: Sequence[TestItem], size: int) -> Iterator[Sequence[TestItem]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
