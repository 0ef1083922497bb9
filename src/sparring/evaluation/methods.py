"""Several methods on one evaluation: a table and a figure, as figures 2 and 3 of arXiv 2509.07414."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from sparring.evaluation.document import FOLDER, Document, Figure, is_own, read_document
from sparring.evaluation.tables import percent, plain_table

OVERALL = "overall"
OWN = "evaluation.json"
"""A run's comparison on its own domain."""


@dataclass(frozen=True)
class Methods:
    """One evaluation of several models.

    name, metric: the evaluation's; against: what a win rate is against, None where the methods have different bases or
    none. rows: (method, subset → figure), "overall" first. differences: settings that are not the same for all
    methods, each with its value a method: what keeps their figures from being compared.
    """

    name: str
    metric: str
    against: str | None
    rows: tuple[tuple[str, dict[str, Figure]], ...]
    differences: Mapping[str, Sequence[Any]]

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
            if len(common) > 1:
                raise ValueError(f"there are several evaluations: choose one with --name ({', '.join(common)})")
            name = common[0]
        for path, documents in found.items():
            if name not in documents:
                raise ValueError(f"{path} has no evaluation {name!r} (--name); it has: {', '.join(documents)}")
        labels = _labels(list(found))
        chosen = [documents[name] for documents in found.values()]
        return cls.side_by_side(list(zip(labels, chosen, strict=True)))

    @classmethod
    def side_by_side(cls, documents: Sequence[tuple[str, Document]]) -> Methods:
        """From (label, evaluation) pairs of one name, at least one.

        Raises:
            ValueError: some are win rates and some accuracies.
        """
        labels, chosen = zip(*documents, strict=True)
        name, metrics = chosen[0].name, {document.metric for document in chosen}
        if len(metrics) > 1:
            raise ValueError(f"{name}: some are win rates and some accuracies ({', '.join(sorted(metrics))})")
        metric, bases = metrics.pop(), {document.base for document in chosen}
        figures = [{**document.subsets, OVERALL: document.overall} for document in chosen]
        rows = tuple(zip(labels, figures, strict=True))
        return cls(name, metric, bases.pop() if len(bases) == 1 else None, rows, _differences(chosen, metric))

    @property
    def subsets(self) -> list[str]:
        """Overall, then the widest subsets that any method has."""
        names = [name for _, figures in self.rows for name in figures if "/" not in name]
        return list(dict.fromkeys([OVERALL, *names]))

    @property
    def title(self) -> str:
        """What is shown."""
        against = f" against {self.against}" if self.against and self.metric == "win_rate" else ""
        return f"{self.name}: {self.metric.replace('_', ' ')}{against}"

    @property
    def note(self) -> str | None:
        """What is not the same for all methods, in words."""
        told = [f"{name} ({', '.join(map(_short, values))})" for name, values in self.differences.items()]
        return f"not the same for all: {'; '.join(told)}" if told else None

    def to_json(self) -> dict[str, Any]:
        """As one object."""
        methods = {label: {name: asdict(figure) for name, figure in figures.items()} for label, figures in self.rows}
        head = {"name": self.name, "metric": self.metric, "against": self.against}
        return {**head, "methods": methods, "differences": dict(self.differences)}


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
    if methods.note is not None:
        result.caption, result.caption_justify = escape(methods.note), "left"
    return result


def draw(methods: Methods, path: Path) -> None:
    """The same as bars with intervals, into a .png or .svg file.

    Raises:
        ValueError: another kind of file, or it can't be written.
    """
    if path.suffix not in (".png", ".svg"):
        raise ValueError(f"--plot writes .png or .svg, not {path.suffix or path}")
    from sparring.report.bars import method_bars

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(method_bars(methods).files()[path.suffix[1:]])
    except OSError as error:
        raise ValueError(f"--plot: {path} can't be written ({error.strerror})") from error


def evaluation_files(path: Path) -> list[Path]:
    """The files of a folder, or of a run, that hold an evaluation."""
    files = [*path.glob("*.json"), *(path / FOLDER).glob("*.json")]
    return [file for file in sorted(files) if file.is_file() and (file.name == OWN or _is_document(file))]


def _documents(path: Path) -> dict[str, Document]:
    """A path's evaluations by name."""
    if path.is_file():
        one = read_document(path)
        return {one.name: one}
    if not path.is_dir():
        raise ValueError(f"{path}: neither a run, nor a folder or file of evaluations")
    # Others' results may lie there too (the start's): where names are the same, the run's own stands for it.
    found = [read_document(file) for file in evaluation_files(path)]
    documents = sorted(found, key=lambda one: is_own(one.model, path))
    if not documents:
        raise ValueError(f"{path} holds no evaluation: `sparring eval` makes them")
    return {document.name: document for document in documents}


def _is_document(file: Path) -> bool:
    """Answers and verdicts lie beside the evaluations, and a model's configuration may."""
    with file.open("rb") as opened:
        begin = opened.read(64).lstrip()
    return begin.startswith(b"{") and b'"schema"' in begin


def _labels(paths: Sequence[Path]) -> list[str]:
    """Short names that differ."""
    short = [path.resolve().name if path.is_dir() else path.stem for path in paths]
    return short if len(set(short)) == len(short) else [str(path) for path in paths]


def _differences(documents: Sequence[Document], metric: str) -> dict[str, list[Any]]:
    """Settings, and the base of a win rate, that are not the same for all."""
    settings = [
        {**document.settings, **({"base": document.base} if metric == "win_rate" else {})} for document in documents
    ]
    names = dict.fromkeys(name for one in settings for name in one)
    values = {name: [one.get(name) for one in settings] for name in names}
    return {name: each for name, each in values.items() if any(value != each[0] for value in each)}


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 40 else f"{text[:39]}…"
