"""A plan shown: tables for a terminal, plain data for a program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from sparring.plan.hardware import GIB, MARGIN

if TYPE_CHECKING:
    from sparring.plan import Plan
    from sparring.plan.remedies import Route


def render(plan: Plan, console: Console) -> None:
    """Memory by part and phase, the floor of time, what would make it fit, and what is left out."""
    cards = plan.gpu.name if plan.gpus == 1 else f"{plan.gpus} x {plan.gpu.name}"
    console.print(
        f"[bold]{plan.model}[/bold] on {cards}: {plan.parameters / 1e9:.2f} B parameters, "
        f"{_count(plan.trained)} trained"
    )
    console.print("\nGiB per GPU, at each phase's worst moment")
    console.print(_memory(plan))
    console.print(_verdict(plan))
    for route in plan.remedies:
        console.print(f"\n{_heading(route)}")
        console.print(_changes(route))
    console.print(
        f"\nSeconds per step, the least possible; completions of {plan.mean_length:.0%} of the longest length"
    )
    console.print(_time(plan))
    for note in plan.notes:
        console.print(f"- {note}", style="dim")


def to_json(plan: Plan) -> dict[str, Any]:
    """The same as plain data: bytes and seconds."""
    return {
        "model": plan.model,
        "parameters": plan.parameters,
        "trained": plan.trained,
        "gpu": plan.gpu.name,
        "gpus": plan.gpus,
        "rollout": plan.rollout,
        "mean_length": plan.mean_length,
        "memory": {
            "usable": plan.gpu.usable,
            "peak": plan.peak,
            "fits": plan.fits,
            "phases": {
                phase.name: {"moment": phase.moment, "peak": phase.peak, "fits": phase.peak <= plan.gpu.usable}
                | {"parts": phase.parts}
                for phase in plan.phases
            },
        },
        "remedies": [[vars(remedy) for remedy in route] for route in plan.remedies],
        "seconds": {**plan.seconds, "total": plan.total_seconds},
        "served": list(plan.served),
        "server_gpus": plan.server_gpus,
        "notes": list(plan.notes),
    }


def _memory(plan: Plan) -> Table:
    table = Table("part", show_footer=True)
    table.columns[0].footer = "peak"
    for phase in plan.phases:
        table.add_column(phase.name, justify="right", footer=_gib(phase.peak))
    for part in dict.fromkeys(part for phase in plan.phases for part in phase.parts):
        table.add_row(part, *(_gib(phase.parts[part]) if part in phase.parts else "" for phase in plan.phases))
    return table


def _verdict(plan: Plan) -> str:
    usable = f"{_gib(plan.gpu.usable)} GiB usable ({plan.gpu.memory_gib:g} less {MARGIN:.0%})"
    if plan.fits:
        return f"[green]It fits[/green]: {_gib(plan.peak)} of {usable}."
    over = [f"{phase.name} (worst while {phase.moment})" for phase in plan.phases if phase.peak > plan.gpu.usable]
    return f"[red]It does not fit[/red] into {usable}: {', '.join(over)}."


def _heading(route: Route) -> str:
    return "What makes it fit" if route[-1].fits else "What lowers it most, and is not enough"


def _changes(route: Route) -> Table:
    table = Table("setting")
    table.add_column("peak then, GiB", justify="right")
    for remedy in route:
        table.add_row(remedy.setting, _gib(remedy.peak) + (" fits" if remedy.fits else ""))
    return table


def _time(plan: Plan) -> Table:
    table = Table("part", show_footer=True)
    table.columns[0].footer = "total"
    table.add_column("seconds", justify="right", footer=_seconds(plan.total_seconds))
    server = f" (rollout servers, {plan.server_gpus} GPUs in all)"
    for part, seconds in plan.seconds.items():
        table.add_row(part + (server if part in plan.served else ""), _seconds(seconds))
    return table


def _gib(size: int) -> str:
    return f"{size / GIB:.1f}" if size >= GIB / 10 else f"{size / GIB:.2g}"


def _seconds(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:.1f} M"
