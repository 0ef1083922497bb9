"""Several methods on one evaluation: a table and a figure, as figures 2 and 3 of arXiv 2509.07414."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from sparring.evaluation.document import FOLDER, Document, Figure, read_document
from sparring.evaluation.tables import percent, plain_table

OVERALL = "overall"


@dataclass(frozen=True)
class Methods:
    """One evaluation of several models.

    name, metric: the evaluation's; against: what a win rate is against, None where the methods have different bases or
    none. rows: (method, subset → figure), "overall" first.
    """

    name: str
    metric: str
    against: str | None
    rows: tuple[tuple[str, dict[str, Figure]], ...]

    @classmethod
    def of(cls, paths: Sequence[Path], name: str | None) -> Methods:
        """From runs' folders (their evaluation.json and evaluations/*.json) and files.

        Raises:
            ValueError: nothing there, none that all have, or several and none is named.
        """
        found = {path: _documents(path) for path in paths}
        common = [n for n in next(iter(found.values())) if all(n in documents for documents in found.values())]
        if name is None:
            if not common:
                listed = "; ".join(f"{path}: {', '.join(documents)}" for path, documents in found.items())
                raise ValueError(f"there is no evaluation that all have ({listed})")
            name = common[0]
        for path, documents in found.items():
            if name not in documents:
                raise ValueError(f"{path} has no evaluation {name!r} (--name); it has: {', '.join(documents)}")
        chosen = [(path, documents[name]) for path, documents in found.items()]
        metrics = {document.metric for _, document in chosen}
        if len(metrics) > 1:
            raise ValueError(f"{name}: some are win rates and some accuracies ({', '.join(sorted(metrics))})")
        bases = {document.base for _, document in chosen}
        rows = [(_label(path), {OVERALL: document.overall, **document.subsets}) for path, document in chosen]
        return cls(name, metrics.pop(), bases.pop() if len(bases) == 1 else None, tuple(rows))

    @property
    def subsets(self) -> list[str]:
        """Overall, then the widest subsets that any method has."""
        names = [name for _, figures in self.rows for name in figures if "/" not in name]
        return list(dict.fromkeys(names))

    @property
    def title(self) -> str:
        """What is shown."""
        against = f" against {self.against}" if self.against and self.metric == "win_rate" else ""
        return f"{self.name}: {self.metric.replace('_', ' ')}{against}"

    def to_json(self) -> dict[str, Any]:
        """As one object."""
        methods = {label: {name: asdict(figure) for name, figure in figures.items()} for label, figures in self.rows}
        return {"name": self.name, "metric": self.metric, "against": self.against, "methods": methods}


def table(methods: Methods) -> Table:
    """Subsets by methods: so it fits a terminal with many subsets."""
    result = plain_table(f"{methods.title} [95 % interval]", [escape(label) for label, _ in methods.rows])
    for name in methods.subsets:
        cells = [figures.get(name) for _, figures in methods.rows]
        result.add_row(
            escape(name),
            *("–" if figure is None else percent(figure.value, figure.ci95) for figure in cells),
            style="bold" if name == OVERALL else None,
        )
    return result


def draw(methods: Methods, path: Path) -> None:
    """The same as bars with intervals, into a .png or .svg file.

    Raises:
        ValueError: another kind of file.
    """
    if path.suffix not in (".png", ".svg"):
        raise ValueError(f"--plot writes .png or .svg, not {path.suffix or path}")
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    from sparring.report.drawing import COLOURS, STYLE

    subsets, count = methods.subsets, len(methods.rows)
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(max(5.0, 1.0 + 0.35 * count * len(subsets)), 3.6))
        width = 0.8 / count
        for index, (label, figures) in enumerate(methods.rows):
            places, values, below, above = [], [], [], []
            for place, name in enumerate(subsets):
                one = figures.get(name)
                if one is not None:
                    low, high = one.ci95 or (one.value, one.value)
                    places.append(place + (index - (count - 1) / 2) * width)
                    values.append(100 * one.value)
                    below.append(100 * max(0.0, one.value - low))
                    above.append(100 * max(0.0, high - one.value))
            axes.bar(places, values, 0.92 * width, label=label, color=COLOURS[index % len(COLOURS)])
            axes.errorbar(places, values, (below, above), fmt="none", ecolor="black", elinewidth=0.9, capsize=2)
        if methods.metric == "win_rate":
            axes.axhline(50, color="grey", linewidth=0.8, linestyle="--")
        axes.set_xticks(range(len(subsets)), subsets)
        axes.set_ylabel(f"{methods.metric.replace('_', ' ')} (%)")
        axes.set_title(methods.title, loc="left")
        axes.legend(ncols=min(4, count), loc="upper center", bbox_to_anchor=(0.5, -0.12))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, bbox_inches="tight", dpi=160)
        plt.close(figure)


def _documents(path: Path) -> dict[str, Document]:
    """A path's evaluations by name."""
    if path.is_file():
        found = read_document(path)
        return {found.name: found}
    if not path.is_dir():
        raise ValueError(f"{path}: neither a run nor an evaluation's file")
    files = [file for file in [path / "evaluation.json", *sorted((path / FOLDER).glob("*.json"))] if file.is_file()]
    documents = [read_document(file) for file in files if _is_document(file)]
    if not documents:
        raise ValueError(f"{path} holds no evaluation: `sparring eval` makes them")
    return {document.name: document for document in documents}


def _is_document(file: Path) -> bool:
    """Answers and verdicts lie beside the evaluations."""
    with file.open(encoding="utf-8") as opened:
        return opened.read(64).lstrip().startswith("{")


def _label(path: Path) -> str:
    return path.name if path.is_dir() else path.stem
