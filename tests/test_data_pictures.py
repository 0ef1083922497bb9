"""`sparring data pictures`: images and a table of questions become a data set as Vision-SR1-47K is one."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sparring import data_pictures, data_shards
from sparring.cli import main
from sparring.data import load_prompts
from sparring.data_pictures import Columns, convert
from sparring.files import RunFolderError
from sparring.images import MAX_PIXELS, Picture
from test_images import bomb

COLUMNS = ["problem", "answer", "images", "problem_type", "source"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three sound images and four that can't be used."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, (width, height) in {"a.png": (28, 28), "b.jpg": (80, 40), "more/c.webp": (30, 60)}.items():
        Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(folder / name)
    whole = (folder / "b.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_bytes(b"no image")
    (folder / "bomb.png").write_bytes(bomb(60_000, 60_000))
    os.mkfifo(folder / "pipe.png")
    return folder


def table(folder: Path, rows: list[Any], name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def asked(image: Any, **more: Any) -> dict[str, Any]:
    return {"image": image, "question": "What is it?", "answer": "A", **more}


def read(out: Path) -> list[dict[str, Any]]:
    return [row for file in sorted((out / "data").iterdir()) for row in parquet.read_table(file).to_pylist()]


def test_rows_with_their_images(photos: Path, tmp_path: Path) -> None:
    rows = [
        asked("a.png", problem_type="multiple choice", source="toys"),
        asked(["b.jpg", "more/c.webp"], answer=12.5, question="<image>How far is <image>?"),
        asked(str(photos / "a.png"), source=None),
    ]
    out = tmp_path / "mine"
    made = convert(table(photos, rows), out)
    assert (made.rows, made.files, made.skipped, made.skipped_file) == (3, 1, 0, None)
    first, second, third = read(out)
    assert list(first) == COLUMNS
    assert first == {
        "problem": "<image>What is it?",
        "answer": "A",
        "images": [{"bytes": (photos / "a.png").read_bytes(), "path": "a.png"}],
        "problem_type": "multiple choice",
        "source": "toys",
    }
    assert (second["problem"], second["answer"]) == ("<image>How far is <image>?", "12.5")
    assert [image["path"] for image in second["images"]] == ["b.jpg", "c.webp"]
    assert (third["images"], third["source"], third["problem_type"]) == (first["images"], None, None)
    assert [entry.name for entry in tmp_path.iterdir() if entry != photos] == ["mine"]
    assert [entry.name for entry in (out / "data").iterdir()] == ["train-00000-of-00001.parquet"]


def test_what_cannot_be_used_is_counted_skipped_and_named(photos: Path, tmp_path: Path) -> None:
    bad = [
        (asked("gone.png"), "gone.png: no such file"),
        (asked("cut.jpg"), "cut.jpg: can't be read as an image"),
        (asked("text.png"), "text.png: can't be read as an image"),
        (asked("bomb.png"), "bomb.png: "),
        (asked("pipe.png"), "pipe.png: no such file"),
        (asked("x" * 4000), "can't be read (File name too long)"),
        (asked("a\0b"), "no such file"),
        (asked(["a.png", "gone.png"]), "gone.png: no such file"),
        (asked(None), "its image names no image file"),
        (asked([]), "its image names no image file"),
        (asked([3]), "its image names no image file"),
        (asked("a.png", question=" "), "its question is missing"),
        (asked("a.png", answer=None), "its answer is missing"),
        (asked("a.png", answer=["A"]), "its answer is no text"),
        (asked("a.png", answer=True), "its answer is no text"),
        (asked("a.png", question="half \ud800"), "its question holds half a character"),
        ([1], "it is no object with columns"),
    ]
    path = table(photos, [asked("a.png"), *(row for row, _ in bad), asked("b.jpg")])
    path.write_bytes(path.read_bytes() + b'\n{"image": \n\xff\n' + b"[" * 100_000 + b"\n")
    made = convert(path, tmp_path / "mine")
    assert (made.rows, made.skipped, len(made.reasons)) == (2, len(bad) + 3, 5)
    assert made.skipped_file == tmp_path / "mine-skipped.jsonl"
    told = [json.loads(line) for line in made.skipped_file.read_text().splitlines()]
    assert [row["row"] for row in told] == [*range(2, len(bad) + 2), 21, 22, 23]
    for row, (_, reason) in zip(told, bad, strict=False):
        assert reason in row["reason"]
    assert all(row["reason"].startswith("it is not JSON") for row in told[-3:])
    assert made.reasons[0] == "row 2: gone.png: no such file"
    assert len(read(tmp_path / "mine")) == 2


def test_images_lie_in_their_folder(photos: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes((photos / "a.png").read_bytes())
    (photos / "link.png").symlink_to(secret)
    names = [str(secret), "../secret.png", "more/../../secret.png", "link.png"]
    inside = ["more/../a.png", str(photos / "a.png")]
    made = convert(table(photos, [asked(name) for name in names + inside]), tmp_path / "mine")
    assert (made.rows, made.skipped) == (2, 4)
    assert made.reasons == [f"row {n}: {name}: lies outside {photos}" for n, name in enumerate(names, 1)]
    (tmp_path / "linked").symlink_to(photos)
    assert convert(photos / "rows.jsonl", tmp_path / "two", images=tmp_path / "linked").rows == 2


def test_the_table_is_never_what_it_replaces(photos: Path, tmp_path: Path) -> None:
    path = table(photos, [asked("a.png")], "mine-skipped.jsonl")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"is where the rows that mine skips are listed"):
        convert(path, photos / "mine")
    assert path.read_bytes() == before and not (photos / "mine").exists()
    convert(path, tmp_path / "mine")
    inside = table(tmp_path / "mine", [asked("a.png")])
    with pytest.raises(ValueError, match="would remove it"):
        convert(inside, tmp_path / "mine", images=photos, overwrite=True)
    assert inside.is_file()


def test_a_folder_that_can_not_be_made_is_named_as_the_command_calls_it(photos: Path) -> None:
    ran = CliRunner().invoke(main, ["data", "pictures", str(table(photos, [asked("a.png")])), "/proc/x/ds"])
    assert ran.exit_code == 1
    assert "/proc/x/ds could not be written" in ran.stderr and "as OUT" in " ".join(ran.stderr.split())
    assert "--out" not in ran.stderr


def test_the_bound_on_pixels_is_no_larger_than_the_readers(photos: Path, tmp_path: Path) -> None:
    command = ["data", "pictures", str(table(photos, [asked("a.png")])), str(tmp_path / "mine"), "--max-pixels"]
    assert CliRunner().invoke(main, [*command, str(MAX_PIXELS + 1)]).exit_code == 2
    assert CliRunner().invoke(main, [*command, str(MAX_PIXELS)]).exit_code == 0


def test_a_bomb_is_never_decoded(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (photos / "large.png").write_bytes(bomb(9_000, 9_000))
    decoded: list[tuple[int, int]] = []
    load = Image.Image.load
    monkeypatch.setattr(Image.Image, "load", lambda self: decoded.append(self.size) or load(self))
    path = table(photos, [asked(name) for name in ("a.png", "bomb.png", "large.png", "b.jpg")])
    made = convert(path, tmp_path / "mine", max_pixels=3000)
    assert made.reasons[1:] == [
        "row 3: large.png: 9000 x 9000 pixels; an image must have from 1 to 3000",
        "row 4: b.jpg: 80 x 40 pixels; an image must have from 1 to 3000",
    ]
    assert set(decoded) == {(28, 28)}


def test_a_file_of_any_size_is_not_read(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_pictures, "FILE_BYTES", 2**20)
    with (photos / "sparse.png").open("wb") as file:
        file.truncate(2**20 + 1)
    made = convert(table(photos, [asked("a.png"), asked("sparse.png")]), tmp_path / "mine")
    assert made.reasons == ["row 2: sparse.png: more than 1 MiB"]


def test_larger_images_are_scaled_down(photos: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn: 40 wide, 80 high
    Image.open(photos / "b.jpg").save(photos / "turned.jpg", exif=exif)
    path = table(photos, [asked(name) for name in ("a.png", "b.jpg", "more/c.webp", "turned.jpg")])
    convert(path, tmp_path / "mine", longest_side=40)
    images = [row["images"][0]["bytes"] for row in read(tmp_path / "mine")]
    assert images[0] == (photos / "a.png").read_bytes()
    opened = [Image.open(io.BytesIO(image)) for image in images]
    assert [(image.format, image.size) for image in opened[1:]] == [
        ("JPEG", (40, 20)),
        ("PNG", (20, 40)),
        ("JPEG", (20, 40)),
    ]


def test_a_csv_with_columns_of_its_own(photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows(
            [["file", "ask", "gold"], ["a.png", 'a "b",\nc?', "é"], ["gone.png"], ["b.jpg", "d", "1", "x"]]
        )
    made = convert(path, tmp_path / "mine", images=photos, columns=Columns("file", "ask", "gold"))
    assert made.reasons == ["row 2: its ask is missing"]
    assert [(row["problem"], row["answer"]) for row in read(tmp_path / "mine")] == [
        ('<image>a "b",\nc?', "é"),
        ("<image>d", "1"),
    ]
    with pytest.raises(ValueError, match=r"rows\.csv has no column 'image': .* by --image; it has: file, ask, gold"):
        convert(path, tmp_path / "other", images=photos)
    path.write_bytes(b"image,question,answer\na.png,\xff,1\n")
    with pytest.raises(ValueError, match=r"rows\.csv is no CSV file in UTF-8"):
        convert(path, tmp_path / "other", images=photos)


def test_many_rows_are_several_files_in_order(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = (photos / "a.png").stat().st_size
    monkeypatch.setattr(data_shards, "GROUP_ROWS", 3)
    monkeypatch.setattr(data_shards, "SHARD_BYTES", 5 * size)
    monkeypatch.setattr(data_pictures, "TOLD_EVERY", 10)
    said: list[str] = []
    made = convert(
        table(photos, [asked("a.png", answer=str(n)) for n in range(20)]), tmp_path / "mine", say=said.append
    )
    names = [f"train-{number:05}-of-00004.parquet" for number in range(4)]
    assert sorted(file.name for file in (tmp_path / "mine/data").iterdir()) == names
    assert (made.files, made.bytes) == (4, 20 * size)
    assert [row["answer"] for row in read(tmp_path / "mine")] == [str(n) for n in range(20)]
    assert parquet.ParquetFile(tmp_path / "mine/data" / names[0]).num_row_groups == 2
    assert said == ["10 rows written, 0 skipped", "20 rows written, 0 skipped"]


def test_what_is_there_is_only_overwritten_when_asked(photos: Path, tmp_path: Path) -> None:
    path, out = table(photos, [asked("a.png")]), tmp_path / "mine"
    convert(table(photos, [asked("a.png"), asked("gone.png")]), out)
    assert (tmp_path / "mine-skipped.jsonl").is_file()
    table(photos, [asked("b.jpg")])
    with pytest.raises(ValueError, match="mine is there already: --overwrite"):
        convert(path, out)
    assert read(out)[0]["images"][0]["path"] == "a.png"
    convert(path, out, overwrite=True)
    assert [row["images"][0]["path"] for row in read(out)] == ["b.jpg"]
    assert not (tmp_path / "mine-skipped.jsonl").exists(), "it was the other's"
    (out / "notes.txt").write_text("mine")
    for place in (out, photos, path):
        with pytest.raises(ValueError, match=r"is no data set of pictures \(.*\): --overwrite would remove it"):
            convert(path, place, overwrite=True)
    assert (out / "notes.txt").read_text() == "mine"


def test_there_is_never_half_a_data_set(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = table(photos, [asked("a.png")] * 9), tmp_path / "mine"
    convert(path, out)
    before = read(out)
    monkeypatch.setattr(data_shards, "GROUP_ROWS", 2)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    for failing, raised in ((full, RunFolderError), (stopped, KeyboardInterrupt)):
        with monkeypatch.context() as patch:
            patch.setattr(data_shards.Shards, "_close", failing)
            with pytest.raises(raised):
                convert(path, out, overwrite=True)
        assert read(out) == before
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["mine", "photos"]
    with monkeypatch.context() as patch:  # the new folder can't be put in place: the old one is put back
        rename, calls = Path.rename, []

        def second_fails(self: Path, target: Path) -> Path:
            calls.append(target)
            return full() if len(calls) == 3 else rename(self, target)

        patch.setattr(Path, "rename", second_fails)
        with pytest.raises(RunFolderError, match="No space left"):
            convert(path, out, overwrite=True)
    assert read(out) == before


def test_nothing_that_can_be_used_is_an_error(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none of its 2 rows can be used \(row 1: gone.png: no such file\)"):
        convert(table(photos, [asked("gone.png"), asked("text.png")]), tmp_path / "mine")
    with pytest.raises(ValueError, match="it has no row"):
        convert(table(photos, []), tmp_path / "mine")
    with pytest.raises(ValueError, match=r"none\.jsonl can't be read: No such file"):
        convert(tmp_path / "none.jsonl", tmp_path / "mine")
    assert [entry.name for entry in tmp_path.iterdir()] == ["photos"]


NAMES = st.sampled_from(["image", "question", "answer", "problem_type", "source", "x"])
FILES = ["a.png", "cut.jpg", "../x"]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["a.png", "cut.jpg", "../x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(VALUES | st.dictionaries(NAMES, VALUES, min_size=1), max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
def test_any_rows_are_written_or_named(photos: Path, tmp_path: Path, rows: list[Any]) -> None:
    made = convert(table(photos, [asked("a.png"), *rows]), tmp_path / "mine", overwrite=True)
    assert (made.rows + made.skipped, len(read(tmp_path / "mine"))) == (len(rows) + 1, made.rows)


def test_the_command_says_what_it_did(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table(
        photos,
        [{"file": "a.png", "question": "what?", "answer": "A"}, {"file": "cut.jpg", "question": "?", "answer": "B"}],
    )
    command = ["data", "pictures", "photos/rows.jsonl", "mine", "--image", "file", "--longest-side", "20"]
    ran = CliRunner().invoke(main, command)
    assert ran.exit_code == 0
    assert "mine: 1 rows in 1 files" in ran.stdout
    assert "sparring train vision-sr1 --preset paper --init MODEL game.prompts=mine" in ran.stdout
    assert "skipped: row 2: cut.jpg: can't be read as an image" in ran.stderr
    assert "1 rows are skipped, all named in mine-skipped.jsonl" in ran.stderr
    again = CliRunner().invoke(main, command)
    assert (again.exit_code, "--overwrite" in again.stderr, "Traceback" in again.output) == (1, True, False)
    assert CliRunner().invoke(main, [*command, "--overwrite"]).exit_code == 0
    assert CliRunner().invoke(main, ["data", "pictures", "rows.txt", "mine"]).exit_code == 2
    assert "pictures" in CliRunner().invoke(main, ["data", "--help"]).output


def test_our_loader_and_the_datasets_library_read_it(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets", reason="the datasets library (pip install 'sparring[data]') is absent")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    out = tmp_path / "mine"
    rows = [asked("a.png", problem_type="numerical"), asked(["b.jpg", "more/c.webp"], source="toys")]
    convert(table(photos, [*rows, asked("gone.png")]), out)
    theirs = datasets.load_dataset(str(out), split="train")
    assert theirs.column_names == COLUMNS
    assert theirs.features["images"] == datasets.List(datasets.Image())
    assert [[image.size for image in row["images"]] for row in theirs] == [[(28, 28)], [(80, 40), (30, 60)]]
    for source in (out, next((out / "data").iterdir())):
        ours = load_prompts(str(source)).rows
        assert [(row.query, len(row.images)) for row in ours] == [("What is it?", 1), ("What is it?", 2)]
        assert dict(ours[0].columns) == {"answer": "A", "problem_type": "numerical", "source": None}
        seen = Picture.open(ours[1].images[1])
        assert (seen.width, seen.height) == (30, 60)
        assert seen == Picture.open(photos / "more/c.webp")
        assert seen.name == f"{source}, row 2: its images"
