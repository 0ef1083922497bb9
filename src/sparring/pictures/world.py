"""The picture world: nine cells, each empty or with one coloured shape, and how they are drawn.

Colours, shapes and how full a row is are skewed, so that an answer from habit alone is right more often than chance:
that is the shortcut which a good description has to beat. One scene in sixteen, by a hash of its grid, is for testing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

COLOURS = ("red", "blue", "green", "yellow")
SHAPES = ("circle", "square", "triangle", "cross")
COMMONNESS = (0.40, 0.25, 0.20, 0.15)
"""Of the four colours, and of the four shapes, in that order."""
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "centre", "right")
CELLS = tuple(f"{row}-{column}" for row in ROWS for column in COLUMNS)
FILLED = (0.75, 0.60, 0.50)
"""How often a cell of each row holds something."""

CELL_PIXELS = 28
PICTURE_PIXELS = 3 * CELL_PIXELS
INK = {"red": (215, 50, 45), "blue": (50, 90, 215), "green": (45, 160, 75), "yellow": (235, 190, 40)}
PAPER, PAPER_JITTER = 225, 12
INK_JITTER, SHIFT, NOISE = 22, 2, 8.0
SMALLEST, LARGEST = 8.0, 11.0

HELD_OUT_SHARE = 16
DEV_SEED = 1
"""Of held-out items for choosing settings."""
TEST_SEED = 2
"""Of held-out items for reporting only; nothing was ever chosen on it."""

Split = Literal["train", "held-out"]


@dataclass(frozen=True)
class Thing:
    """What a cell holds."""

    colour: str
    shape: str

    def __str__(self) -> str:
        return f"{self.colour}-{self.shape}"


@dataclass(frozen=True)
class Scene:
    """Nine cells in the order of `CELLS`; None is an empty one. A description, once read, is a scene too."""

    cells: tuple[Thing | None, ...]

    def at(self, cell: str) -> Thing | None:
        """What the cell holds."""
        return self.cells[CELLS.index(cell)]

    def things(self) -> list[tuple[str, Thing]]:
        """The cells that hold something, in order."""
        return [(cell, thing) for cell, thing in zip(CELLS, self.cells, strict=True) if thing is not None]

    def in_row(self, row: str) -> list[str]:
        """The cells of the row that hold something."""
        return [cell for cell, _ in self.things() if row_of(cell) == row]

    def __str__(self) -> str:
        return " ".join(f"{cell}:{thing}" for cell, thing in self.things())


def row_of(cell: str) -> str:
    """The row a cell is in.

    >>> row_of("middle-left")
    'middle'
    """
    return cell.partition("-")[0]


def held_out(scene: Scene) -> bool:
    """Whether the scene is kept for testing: the same on every machine and in every version."""
    return hashlib.blake2b(str(scene).encode(), digest_size=8).digest()[0] % HELD_OUT_SHARE == 0


def draw_scene(rng: np.random.Generator, split: Split) -> Scene:
    """A random scene of the split with one thing at least. No scene belongs to both splits."""
    if split not in ("train", "held-out"):
        raise ValueError(f"the picture world has the splits 'train' and 'held-out', not {split!r}")
    while True:
        filled = rng.random(9) < np.repeat(FILLED, 3)
        colours, shapes = np.searchsorted(np.cumsum(COMMONNESS[:-1]), rng.random((2, 9)))
        scene = Scene(
            tuple(
                Thing(COLOURS[colour], SHAPES[shape]) if there else None
                for there, colour, shape in zip(filled, colours, shapes, strict=True)
            )
        )
        if filled.any() and held_out(scene) is (split == "held-out"):
            return scene


_OFFSET_YX = np.mgrid[:CELL_PIXELS, :CELL_PIXELS] - (CELL_PIXELS - 1) / 2


def _mask(shape: str, dy: float, dx: float, r: float) -> np.ndarray:
    """Which pixels of a cell the shape covers; its areas are alike, so that size tells little."""
    y, x = _OFFSET_YX[0] - dy, _OFFSET_YX[1] - dx
    wide, high = abs(x), abs(y)
    if shape == "circle":
        return x * x + y * y <= r * r
    if shape == "square":
        return np.maximum(wide, high) <= 0.86 * r
    if shape == "triangle":
        return (y <= 0.85 * r) & (wide <= 0.6 * (y + r))
    return (np.minimum(wide, high) <= 0.36 * r) & (np.maximum(wide, high) <= 1.05 * r)


def paint(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """The scene as pixels [84, 84, 3] uint8: every shape a little off its place, size and ink, noise over all."""
    pixels = np.empty((PICTURE_PIXELS, PICTURE_PIXELS, 3), np.float32)
    pixels[:] = PAPER + rng.uniform(-PAPER_JITTER, PAPER_JITTER, 3)
    shift_CYX = rng.uniform(-SHIFT, SHIFT, (9, 2))
    size_C = rng.uniform(SMALLEST, LARGEST, 9)
    ink_CI = rng.uniform(-INK_JITTER, INK_JITTER, (9, 3))
    for i, thing in enumerate(scene.cells):
        if thing is not None:
            top, left = CELL_PIXELS * (i // 3), CELL_PIXELS * (i % 3)
            mask = _mask(thing.shape, shift_CYX[i, 0], shift_CYX[i, 1], size_C[i])
            cell = pixels[top : top + CELL_PIXELS, left : left + CELL_PIXELS]
            cell[mask] = np.array(INK[thing.colour]) + ink_CI[i]
    pixels += NOISE * rng.standard_normal(pixels.shape, np.float32)
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def draw(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """The scene as an RGB picture of 84 by 84 pixels; the same generator state gives the same pixels."""
    return Image.fromarray(paint(scene, rng))
