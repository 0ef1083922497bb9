"""The README.md of a pretrained model's folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TEXT = """# Sparring's picture model

A Qwen2.5-VL of {parameters:,} parameters, made from nothing for Sparring's picture world: 84 by 84 pixels, nine cells,
coloured shapes, four kinds of questions. It answers in the form
`<description>…</description><think>…</think>\\boxed{{…}}`, and as a reader, given a description and no picture, in
`<think>…</think>\\boxed{{…}}`. It knows nothing else. No data but those its program draws were used.

It is sloppy on purpose: careful pretraining was followed by a cold start on responses that end their descriptions early
and answer from habit, the more often the lower the row asked about (`usually` in a thought marks such an answer). So
reinforcement mostly brings out again what the model could do before. Grids of one hash in sixteen are held out of all
training.

Made by `python -m sparring.pictures.pretrain --out FOLDER --seed {seed} --threads {threads}`: {careful} careful and
{sloppy} sloppy steps, {cpu_seconds} CPU seconds. The same command gives the same weights on the same kind of machine.

Held-out items, {n} a seed; all figures are in pictures.json. LSR: right answers whose description doesn't suffice, of
all.

| | accuracy | LSR | sufficient | in form | reader, sufficient | reader, insufficient |
|---|---|---|---|---|---|---|
{rows}
"""


def _row(name: str, figures: Mapping[str, Any]) -> str:
    reader = figures["reader"]
    cells = [
        *(figures[key] for key in ("accuracy", "lsr", "sufficient", "in_form")),
        reader["sufficient"],
        reader["insufficient"],
    ]
    return f"| {name} | " + " | ".join("–" if cell is None else f"{cell:.3f}" for cell in cells) + " |"


def readme(record: Mapping[str, Any]) -> str:
    """The text, with the figures of `pretrain`'s record."""
    rows = [_row("careful, greedy, seed 1", record["before_cold_start"])]
    for test in record["tests"]:
        rows += [_row(f"{how}, seed {test['seed']}", test[how]) for how in ("greedy", "sampled")]
    return _TEXT.format(
        **{key: record[key] for key in ("parameters", "seed", "threads", "cpu_seconds")},
        careful=record["steps"][0],
        sloppy=record["steps"][1],
        n=record["tests"][0]["n"],
        rows="\n".join(rows),
    )
