"""Which settings make a run fit: changes tried one after another, each by planning again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sparring.plan.setup import Setup
from sparring.settings import RunConfig

MOST_GPUS = 64
LEAST_BUDGET = 1_024  # tokens
WORTH = 0.99  # a change that leaves more of the peak than this is not worth making


@dataclass(frozen=True)
class Situation:
    """What a plan is made for."""

    config: RunConfig
    gpus: int


@dataclass(frozen=True)
class Change:
    """One change of a setting. lossy: it also changes what is trained."""

    setting: str
    apply: Callable[[Situation], Situation]
    lossy: bool = False


@dataclass(frozen=True)
class Remedy:
    """A change, made on top of those before it. peak: bytes of the worst phase then; fits: whether that is enough."""

    setting: str
    peak: int
    fits: bool


Route = tuple[Remedy, ...]
Peak = Callable[[Situation], int]
Ladder = Sequence[Change]


def routes(start: Situation, setup: Setup, peak: Peak, usable: int) -> tuple[Route, ...]:
    """Up to two ways to bring the peak under `usable` bytes: the gentlest changes on as many GPUs, and (where they
    change what is trained, or aren't enough) with the same weights trained on more GPUs.

    Tried in this order, each kept only where it lowers the peak: a lower token budget, checkpointing, a smaller cache,
    LoRA, QLoRA, more GPUs, sharding, a served reward; then each is dropped, or made less of, where it fits even so.
    Where no route is enough, one that lowers the peak most ends in a Remedy that doesn't fit.
    """
    found: list[Route] = []
    for more_gpus in (False, True):
        ladders = list(_ladders(start, setup, more_gpus=more_gpus))
        chosen = _chosen(ladders, start, peak, usable)
        found.append(tuple(_told(chosen, start, peak, usable)))
        if found[0] and found[0][-1].fits and not any(change.lossy for change in chosen):
            break
    fitting = [route for route in found if route and route[-1].fits]
    return tuple(fitting or [route for route in found if route][-1:])


def _chosen(ladders: Sequence[Ladder], start: Situation, peak: Peak, usable: int) -> list[Change]:
    made: list[tuple[Ladder, Change]] = []
    now, height, before = start, peak(start), math.inf
    # A change of no use at first (a smaller cache under full tuning, say) may be of use once others are made.
    while usable < height < before:
        before = height
        for ladder in ladders:
            change, lower = _gentlest(ladder, now, peak, usable)
            if height > usable and lower <= WORTH * height:
                made.append((ladder, change))
                now, height = change.apply(now), lower
    changes = [change for _, change in made]
    return _eased(made, start, peak, usable) if height <= usable else changes


def _gentlest(ladder: Ladder, now: Situation, peak: Peak, usable: int) -> tuple[Change, int]:
    """The first rung that fits; else the first that comes within a hundredth of the lowest."""
    tried: list[tuple[Change, int]] = []
    for change in ladder:
        height = peak(change.apply(now))
        if height <= usable:
            return change, height
        tried.append((change, height))
    lowest = min(height for _, height in tried)
    return next(rung for rung in tried if WORTH * rung[1] <= lowest)


def _eased(made: list[tuple[Ladder, Change]], start: Situation, peak: Peak, usable: int) -> list[Change]:
    """Changes that fit together, each left out or taken more gently where they fit even so."""
    changes: list[Change | None] = [change for _, change in made]

    def fits() -> bool:
        now = start
        for change in changes:
            now = now if change is None else change.apply(now)
        return peak(now) <= usable

    for place, (ladder, _) in enumerate(made):
        for gentler in (None, *ladder):
            changes[place] = gentler
            if fits():
                break
    return [change for change in changes if change is not None]


def _told(chosen: Iterable[Change], start: Situation, peak: Peak, usable: int) -> Iterator[Remedy]:
    now = start
    for change in chosen:
        now = change.apply(now)
        height = peak(now)
        yield Remedy(change.setting, height, height <= usable)


def _ladders(start: Situation, setup: Setup, *, more_gpus: bool) -> Iterator[Ladder]:
    """What can be changed, gentlest first; each a ladder of ever stronger values."""
    config = start.config
    yield [_set("learner.token_budget", budget) for budget in _halvings(setup.token_budget)]
    if not setup.checkpointing:
        yield [_set("model.gradient_checkpointing", True)]
    if setup.writes or setup.grades:
        yield [_set("model.cache_tokens", tokens) for tokens in _halvings(config.model.cache_tokens)]
    tuning = config.model.tuning
    if more_gpus:
        yield [_on(gpus, config.game.n_queries) for gpus in _doublings(start.gpus)]
    elif tuning == "full":
        yield [_set("model.tuning", "lora", lossy=True)]
    if tuning != "qlora" and config.parallel.strategy != "shard" and (more_gpus or start.gpus > 1):
        yield [_set("parallel.strategy", "shard")]
    if tuning != "qlora" and not more_gpus and start.gpus == 1:
        yield [_set("model.tuning", "qlora", lossy=True)]
    if setup.reward is not None:
        yield [_set("game.reward.url", "http://HOST:PORT")]


def _set(name: str, value: Any, *, lossy: bool = False) -> Change:
    shown = str(value).lower() if isinstance(value, bool) else str(value)

    def apply(now: Situation) -> Situation:
        return Situation(_with(now.config, name.split("."), value), now.gpus)

    return Change(f"{name}={shown}", apply, lossy)


def _on(gpus: int, queries: int) -> Change:
    """More GPUs, and at least a query for each."""

    def apply(now: Situation) -> Situation:
        return Situation(_with(now.config, ("game", "n_queries"), max(queries, gpus)), gpus)

    return Change(f"{gpus} GPUs" + (f", game.n_queries={gpus} or more" if gpus > queries else ""), apply)


def _with(section: Any, names: Sequence[str], value: Any) -> Any:
    """A copy of these settings with one of them changed."""
    first, *rest = names
    return section.model_copy(update={first: _with(getattr(section, first), rest, value) if rest else value})


def _halvings(value: int) -> list[int]:
    """Down to LEAST_BUDGET; that or less gives none but itself."""
    values = [value >> i for i in range(1, value.bit_length()) if value >> i >= LEAST_BUDGET]
    return values or [value]


def _doublings(value: int) -> list[int]:
    """Up to MOST_GPUS; that or more gives none but itself."""
    values = [value << i for i in range(1, MOST_GPUS.bit_length()) if value << i <= MOST_GPUS]
    return values or [value]
