"""Before a run: memory per GPU, the least time that a step can take, and which settings would make it fit.

    plan(config, gpu_named("h100"), gpus=8, rollout="server")

Nothing is loaded but the models' configs. Memory is counted tensor by tensor as the engines hold them (`memory`,
`activations`), for completions of the longest length allowed; time is a floor (`time`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparring.plan.hardware import GPU, GPUS, MARGIN, gpu_named
from sparring.plan.memory import Phase, phases
from sparring.plan.remedies import Remedy, Route, Situation, routes
from sparring.plan.report import render, to_json
from sparring.plan.setup import Rollout, Setup, Shapes, read_shapes, set_up
from sparring.plan.time import Server, server_for, step_seconds
from sparring.plan.workload import workload
from sparring.settings import RunConfig

__all__ = ["GPU", "GPUS", "MARGIN", "Phase", "Plan", "Remedy", "Route", "gpu_named", "plan", "render", "to_json"]


@dataclass(frozen=True)
class Plan:
    """What a run would take of each GPU.

    phases: sampling (of what isn't left to vLLM), reward (with a reward model loaded here), update: each at its worst
    moment, bytes by part. seconds: the floor of a step's time by part. remedies: ways to make it fit, each an ordered
    list of changes; empty where it fits. served: the roles that rollout servers write, on server_gpus GPUs beside
    these. notes: what the figures leave out.
    """

    model: str
    parameters: int
    trained: int
    gpu: GPU
    gpus: int
    rollout: Rollout
    mean_length: float
    phases: tuple[Phase, ...]
    seconds: dict[str, float]
    remedies: tuple[Route, ...]
    served: tuple[str, ...]
    server_gpus: int
    notes: tuple[str, ...]

    @property
    def peak(self) -> int:
        """Bytes of the worst phase."""
        return max(phase.peak for phase in self.phases)

    @property
    def fits(self) -> bool:
        """Whether every phase fits into the GPU's memory less the margin."""
        return self.peak <= self.gpu.usable

    @property
    def total_seconds(self) -> float:
        """The floor of a step's time."""
        return sum(self.seconds.values())


def plan(config: RunConfig, gpu: GPU, *, gpus: int = 1, rollout: Rollout = "local", mean_length: float = 1.0) -> Plan:
    """Memory and time of a run on so many GPUs of one kind.

    rollout: local where the training process's own engine samples, server where vLLM does: beside the GPUs, or (with
    rollout.engine=vllm and no url) on them. mean_length: the mean completion as a share of max_new_tokens, for the
    time; memory is always for the longest.

    Raises ValueError (LoadError among them) for a model that can't be found or described, and settings out of range.
    """
    if gpus < 1:
        raise ValueError(f"gpus must be at least 1, not {gpus}")
    shapes = read_shapes(config)
    now = Situation(config, gpus)
    setup = set_up(config, shapes, gpu, gpus, rollout)
    found = tuple(_phases(now, shapes, gpu, rollout))
    work = workload(config, _queries(config, gpus), mean_length)
    server: Server | None = None
    if rollout == "server" and not setup.vllm:
        server = server_for(setup, workload(config, config.game.n_queries, mean_length), gpu)
    ways: tuple[Route, ...] = ()
    if max(phase.peak for phase in found) > gpu.usable:
        ways = routes(now, setup, lambda then: _peak(then, shapes, gpu, rollout), gpu.usable)
    return Plan(
        model=shapes.policy.name,
        parameters=shapes.policy.parameters,
        trained=setup.trained,
        gpu=gpu,
        gpus=gpus,
        rollout=rollout,
        mean_length=mean_length,
        phases=found,
        seconds=step_seconds(setup, work, gpu, server),
        remedies=ways,
        served=() if server is None else tuple(call.role for call in server.calls),
        server_gpus=0 if server is None else server.gpus * server.servers,
        notes=tuple(_notes(config, setup)),
    )


def _queries(config: RunConfig, gpus: int) -> int:
    """One GPU's share: a query and its answers stay on one GPU."""
    return math.ceil(config.game.n_queries / gpus)


def _phases(now: Situation, shapes: Shapes, gpu: GPU, rollout: Rollout) -> list[Phase]:
    setup = set_up(now.config, shapes, gpu, now.gpus, rollout)
    return phases(setup, workload(now.config, _queries(now.config, now.gpus)))


def _peak(now: Situation, shapes: Shapes, gpu: GPU, rollout: Rollout) -> int:
    return max(phase.peak for phase in _phases(now, shapes, gpu, rollout))


def _notes(config: RunConfig, setup: Setup) -> list[str]:
    game, gpus = config.game, setup.gpus
    notes: list[str] = []
    if gpus > game.n_queries:
        notes.append(f"{gpus} GPUs and {game.n_queries} queries a step: {gpus - game.n_queries} have nothing to do")
    if gpus > 1:
        notes.append("communication between GPUs is not counted")
    if setup.shards > 1 and (setup.writes or setup.grades):
        notes.append("each token sampled here gathers every layer from the other GPUs: rollout servers avoid that")
    if game.kind == "grpo":
        notes.append("the data set is not read: its prompts are taken to have 256 tokens")
    if game.kind == "custom":
        notes.append("a custom game is taken for one Solver, on prompts of 256 tokens")
    if game.reward.url is not None:
        notes.append("the served reward model's memory and time are its server's")
    elif game.reward.model is not None and setup.reward is None:
        notes.append(f"the reward model is on {game.reward.device}, and not counted")
    return notes
