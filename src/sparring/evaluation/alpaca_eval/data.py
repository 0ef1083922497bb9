"""AlpacaEval's instructions, and the files its own tools read: model_outputs.json and annotations.json.

Field names and forms are those of tatsu-lab/alpaca_eval at cd543a1. The data is CC BY-NC 4.0 and not shipped here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparring.evaluation.alpaca_eval.records import Record, read_records

HUB_ID = "tatsu-lab/alpaca_eval"
HUB_FILES = ("alpaca_eval.json", "alpaca_eval_gpt4_baseline.json")
"""The instructions with text_davinci_003's outputs (AlpacaEval 1's baseline), then with gpt4_1106_preview's (2's)."""

SUBSETS: Mapping[str, int] = {"selfinstruct": 252, "oasst": 188, "koala": 156, "helpful_base": 129, "vicuna": 80}
"""The five subsets of the 805 and their sizes."""

_REFERENCE = "ref_"
_ANNOTATION = (
    "dataset",
    "instruction",
    "output_1",
    "generator_1",
    "output_2",
    "generator_2",
    "annotator",
    "preference",
    "raw_completion",
)


@dataclass(frozen=True, slots=True)
class Instruction:
    """One of AlpacaEval's instructions.

    Attributes:
        item_id: its place in AlpacaEval's order, from 0.
        dataset: the subset it belongs to.
        text: the instruction, exactly: the order of showing is drawn from it.
        references: the baselines' outputs, by generator (gpt4_1106_preview, text_davinci_003).
    """

    item_id: int
    dataset: str
    text: str
    references: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """A row of model_outputs.json: what `generator` answered to an instruction of the subset `dataset`."""

    instruction: str
    output: str
    generator: str
    dataset: str | None = None


@dataclass(frozen=True, slots=True)
class Annotation:
    """A row of annotations.json: a judge's verdict on two outputs.

    Attributes:
        output_1: the baseline's output, `generator_1`'s.
        output_2: the evaluated model's, `generator_2`'s.
        preference: 1 (output_1 better) … 2 (output_2 better), 0 or 1.5 for a draw, None: unparsed.
        annotator: the judge's name.
        raw_completion: what the judge said.
        more: fields beside these (price_per_example, ...), kept as they are.
    """

    instruction: str
    output_1: str
    output_2: str
    preference: float | None
    generator_1: str | None = None
    generator_2: str | None = None
    annotator: str | None = None
    dataset: str | None = None
    raw_completion: Any = None
    more: Mapping[str, Any] = field(default_factory=dict)


def load_instructions(source: str | Path = HUB_ID) -> list[Instruction]:
    """The instructions of AlpacaEval's data set on the hub, or of a file.

    The hub's data set is a loading script, which `datasets` 4 refuses to run; the JSON files that it points to are
    fetched as they are (into huggingface_hub's cache).

    A file holds an object an instruction: `instruction`, `dataset`, optionally `id` (else its place), and references
    as `ref_GENERATOR` fields, or as `output` with its `generator`.

    Raises:
        ValueError: nothing there, a damaged row (named by file and line), an id or instruction given twice, or a hub
            data set that is not the 805 any more.
    """
    if str(source) != HUB_ID:
        return _read_instructions(Path(source))
    first, second = (_read_instructions(_fetch(name)) for name in HUB_FILES)
    others = {instruction.text: instruction.references for instruction in second}
    if {instruction.text for instruction in first} != set(others):
        raise ValueError(f"{HUB_ID}: {HUB_FILES[0]} and {HUB_FILES[1]} hold different instructions; give a file")
    counts = Counter(instruction.dataset for instruction in first)
    if counts != SUBSETS:
        raise ValueError(f"{HUB_ID}: expected the subsets {dict(SUBSETS)}, found {dict(counts)}; give a file")
    return [
        Instruction(item.item_id, item.dataset, item.text, {**item.references, **others[item.text]}) for item in first
    ]


def read_outputs(path: Path) -> list[ModelOutput]:
    """The rows of a model_outputs.json (or .jsonl).

    Raises:
        ValueError: no such file, or a row that lacks instruction, output or generator.
    """
    return [
        ModelOutput(row.text("instruction"), row.text("output"), row.text("generator"), row.text_or_none("dataset"))
        for row in read_records(path)
    ]


def write_outputs(path: Path, outputs: Sequence[ModelOutput]) -> None:
    """Write model_outputs.json, which `alpaca_eval --model_outputs` takes (and `--reference_outputs`)."""
    rows = [
        {
            **({} if row.dataset is None else {"dataset": row.dataset}),
            "instruction": row.instruction,
            "output": row.output,
            "generator": row.generator,
        }
        for row in outputs
    ]
    _write(path, rows)


def read_annotations(path: Path) -> list[Annotation]:
    """The rows of an annotations.json (or .jsonl).

    Raises:
        ValueError: no such file, or a row that lacks instruction, output_1, output_2 or preference.
    """
    return [annotation(row) for row in read_records(path)]


def annotation(row: Record) -> Annotation:
    """One row of annotations.json."""
    return Annotation(
        instruction=row.text("instruction"),
        output_1=row.text("output_1"),
        output_2=row.text("output_2"),
        preference=row.preference("preference"),
        generator_1=row.text_or_none("generator_1"),
        generator_2=row.text_or_none("generator_2"),
        annotator=row.text_or_none("annotator"),
        dataset=row.text_or_none("dataset"),
        raw_completion=row.fields.get("raw_completion"),
        more={name: value for name, value in row.fields.items() if name not in _ANNOTATION},
    )


def write_annotations(path: Path, annotations: Sequence[Annotation]) -> None:
    """Write annotations.json; an absent `dataset` is left out, anything else that is None is null."""
    rows: list[dict[str, Any]] = []
    for item in annotations:
        known = {name: getattr(item, name) for name in _ANNOTATION if name != "dataset" or item.dataset is not None}
        rows.append({**known, **item.more})
    _write(path, rows)


def _read_instructions(path: Path) -> list[Instruction]:
    instructions: list[Instruction] = []
    ids: set[int] = set()
    texts: set[str] = set()
    for place, row in enumerate(read_records(path)):
        given = row.count_or_none("id")
        instruction = Instruction(
            item_id=place if given is None else given,
            dataset=row.text("dataset"),
            text=row.text("instruction"),
            references=_references(row),
        )
        if instruction.item_id in ids or instruction.text in texts:
            twice = f"id {instruction.item_id}" if instruction.item_id in ids else "its instruction"
            raise ValueError(f"{row.where}: {twice} was given before")
        ids.add(instruction.item_id)
        texts.add(instruction.text)
        instructions.append(instruction)
    return instructions


def _references(row: Record) -> dict[str, str]:
    references = {name.removeprefix(_REFERENCE): row.text(name) for name in row.fields if name.startswith(_REFERENCE)}
    if row.fields.get("output") is not None:
        references[row.text("generator")] = row.text("output")
    return references


def _fetch(name: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(HUB_ID, name, repo_type="dataset"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{HUB_ID}: {name} can't be fetched from the hub ({error}); check the connection and HF_HUB_OFFLINE, "
            "or give a file of instructions"
        ) from error


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    from sparring.files import write_json_atomic

    write_json_atomic(path, rows)
