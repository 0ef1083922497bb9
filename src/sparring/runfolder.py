"""A run's folder: what a run leaves behind, written so that a crash at any moment loses nothing older.

config.yaml      the resolved configuration          lineage.json   model, stages and versions
metrics.jsonl    one line per step                   evaluation.json, report.html
rolled-back.jsonl  the lines of steps that the run went back before
turns/step-000012.parquet                            checkpoints/step-000012/
pictures/        those that the turns show           model/          the final export
"""

from __future__ import annotations

import json
import math
import os
import re
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from sparring.files import RunFolderError, write_atomic, write_error, write_json_atomic, write_text_atomic

Metric = float | int | str | None
_TURNS = re.compile(r"step-(\d{6,})\.parquet")
_JSON_COLUMN = {b"sparring": b"json"}


class RunFolder:
    """The files of one run. Reading needs no lock; `create` and `open` take it, `close` gives it back.

    The lock is the operating system's on `.lock`, so that a killed process never blocks the next one.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        # Not thread-local: the trainer may close the folder from another thread than the one that opened it.
        self._lock = FileLock(self.path / ".lock", thread_local=False)

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def rolled_back(self) -> Path:
        return self.path / "rolled-back.jsonl"

    @property
    def turns(self) -> Path:
        return self.path / "turns"

    @property
    def pictures(self) -> Path:
        return self.path / "pictures"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def lineage(self) -> Path:
        return self.path / "lineage.json"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def _holder(self) -> Path:
        return self.path / ".lock.json"

    # --- opening ---------------------------------------------------------------------------------

    def create(self, config_text: str, lineage: Mapping[str, Any]) -> Self:
        """Start a new run here and hold its lock. A folder that holds a run already is refused."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(self.path, error) from error
        self._acquire()
        try:
            self._refuse_existing_run()
            self.write_lineage(lineage)
            write_text_atomic(self.config, config_text)
        except BaseException:
            self.close()
            raise
        return self

    def _refuse_existing_run(self) -> None:
        for path in (self.config, self.metrics, self.checkpoints, self.turns):
            if path.exists():
                raise RunFolderError(
                    f"{self.path} holds a run already ({path.name}): resume it "
                    f"(--resume {self.path}) or choose another folder (--out)"
                )

    def open(self) -> Self:
        """Take up the run that lies here and hold its lock."""
        if not self.config.is_file():
            raise RunFolderError(
                f"{self.path} holds no run (no config.yaml): name the folder of a run, or start one with "
                f"`sparring train --out {self.path}`"
            )
        self._acquire()
        return self

    def close(self) -> None:
        """Give the lock back; harmless where it is not held."""
        if self._lock.is_locked:
            self._holder.unlink(missing_ok=True)
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _acquire(self) -> None:
        if self._lock.is_locked:
            return
        try:
            self._lock.acquire(blocking=False)
        except Timeout as error:
            raise RunFolderError(
                f"{self.path} is in use by {self._describe_holder()}: choose another --out or stop it"
            ) from error
        except OSError as error:
            raise write_error(self.path / ".lock", error) from error
        started = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            write_json_atomic(self._holder, {"pid": os.getpid(), "host": socket.gethostname(), "started": started})
        except BaseException:
            self._lock.release()
            raise

    def _describe_holder(self) -> str:
        try:
            holder = json.loads(self._holder.read_text())
            return f"process {holder['pid']} on {holder['host']} (started {holder['started']})"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"  # it holds the lock and has not yet signed, or its note was removed

    # --- metrics ---------------------------------------------------------------------------------

    def append_metrics(self, record: Mapping[str, Metric]) -> None:
        """Add one line; on disk when this returns. Floats come back bit for bit.

        Raises RunFolderError naming the key where a value is not finite or not plain, or where `step`
        (an int, by which a resumed run cuts the file) is missing.
        """
        if not isinstance(record.get("step"), int):
            raise RunFolderError(f"a metrics record needs an integer 'step'; got {record.get('step')!r}")
        for key, value in record.items():
            if not isinstance(value, float | int | str | None):
                raise RunFolderError(f"metric {key!r} must be a number, text or None, not {type(value).__name__}")
            if isinstance(value, float) and not math.isfinite(value):
                raise RunFolderError(f"metric {key!r} is {value} at step {record['step']}: it must be finite")
        line = (json.dumps(dict(record), ensure_ascii=False) + "\n").encode()
        try:
            with self.metrics.open("ab", buffering=0) as file:
                size = file.seek(0, os.SEEK_END)
                try:
                    rest = memoryview(line)
                    while rest:  # a full disk takes a part first and raises at the next write
                        rest = rest[file.write(rest) :]
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(size)  # half a line in the middle would make the file unreadable
                    raise
        except OSError as error:
            raise write_error(self.metrics, error) from error

    def read_metrics(self) -> list[dict[str, Metric]]:
        """All records in order ([] before the first). A last line that is still being written is left out."""
        return [record for _, record in self._metric_lines()[0]]

    def clear_leftovers(self) -> None:
        """Remove what killed processes were writing."""
        for aside in (*self.path.glob(".*.tmp-*"), *self.pictures.glob(".*.tmp-*")):
            aside.unlink(missing_ok=True)

    def set_aside_metrics(self, after_step: int) -> None:
        """Add the lines after a step, which a run that goes back there leaves, to rolled-back.jsonl."""
        lines, _ = self._metric_lines()
        left = b"".join(raw + b"\n" for raw, record in lines if _step_of(record) > after_step)
        before = self.rolled_back.read_bytes() if self.rolled_back.exists() else b""
        if left and before.endswith(left):  # a process was killed between this and dropping them
            return
        write_atomic(self.rolled_back, lambda aside: aside.write_bytes(before + left))

    def truncate_metrics(self, after_step: int, say: Callable[[str], None]) -> int:
        """Drop, atomically, the lines after a step and a last line torn by a crash; returns how many.

        The lines that stay keep their bytes. What is dropped is told to `say`.
        """
        lines, torn = self._metric_lines()
        kept = [raw for raw, record in lines if _step_of(record) <= after_step]
        if len(kept) < len(lines):
            say(f"{self.metrics}: dropped {len(lines) - len(kept)} lines after step {after_step}")
        if torn:
            say(f"{self.metrics}: dropped a torn last line ({len(torn)} bytes) that a killed process left")
        data = b"".join(raw + b"\n" for raw in kept)
        if self.metrics.exists() and self.metrics.read_bytes() != data:
            write_atomic(self.metrics, lambda aside: aside.write_bytes(data))
        return len(lines) - len(kept) + bool(torn)

    def _metric_lines(self) -> tuple[list[tuple[bytes, dict[str, Metric]]], bytes]:
        """Each line's bytes with its record, and the bytes of a torn last line (b"" where there is none)."""
        raw = self.metrics.read_bytes().split(b"\n") if self.metrics.exists() else []
        while raw and not raw[-1]:
            raw.pop()
        lines: list[tuple[bytes, dict[str, Metric]]] = []
        for number, line in enumerate(raw, start=1):
            try:
                lines.append((line, json.loads(line)))
            except ValueError as error:
                if number == len(raw):
                    return lines, line
                raise RunFolderError(
                    f"{self.metrics} line {number} is damaged: remove that line or restore the file"
                ) from error
        return lines, b""

    # --- turns -----------------------------------------------------------------------------------

    def turns_file(self, step: int) -> Path:
        """Where a step's turns lie."""
        return self.turns / f"step-{step:06d}.parquet"

    def write_turns(self, step: int, rows: Sequence[Mapping[str, Any]]) -> Path:
        """Write one step's turns as Parquet, whole or not at all.

        Columns are the rows' keys in order of appearance, and `step`; a key that a row lacks is None.
        Values: int, float, bool, str, None and lists of them; dictionaries become JSON text.
        """
        import pyarrow as pa  # imported late: half a second that the command line's help does not need
        import pyarrow.parquet as pq

        names = dict.fromkeys(["step", *(name for row in rows for name in row)])
        arrays, fields = [], []
        for name in names:
            values = [row.get(name, step if name == "step" else None) for row in rows]
            as_json = any(isinstance(value, dict) for value in values)  # thousands of rows: no slow abstract check
            try:
                if as_json:
                    values = [_json_text(value) for value in values]
                arrays.append(pa.array(values, type=pa.int64() if name == "step" else None))
            except (pa.ArrowException, TypeError, ValueError) as error:
                raise RunFolderError(f"turns of step {step}, column {name!r}: {error}") from error
            fields.append(pa.field(name, arrays[-1].type, metadata=_JSON_COLUMN if as_json else None))
        table = pa.Table.from_arrays(arrays, schema=pa.schema(fields))
        path = self.turns_file(step)
        write_atomic(path, lambda aside: pq.write_table(table, aside, compression="zstd"))
        return path

    def turn_steps(self) -> list[int]:
        """Steps whose turns are here, ascending."""
        found = (_TURNS.fullmatch(path.name) for path in self.turns.glob("*.parquet"))
        return sorted(int(match[1]) for match in found if match)

    def read_turns(self, steps: Iterable[int] | None = None) -> list[dict[str, Any]]:
        """Rows of these steps (None: all), by step and then as written; JSON columns are decoded."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows: list[dict[str, Any]] = []
        for step in self.turn_steps() if steps is None else steps:
            path = self.turns_file(step)
            try:
                table = pq.ParquetFile(path).read()
            except (OSError, pa.ArrowException) as error:
                raise RunFolderError(f"turns of step {step} cannot be read from {path}: {error}") from error
            decode = [field.name for field in table.schema if (field.metadata or {}).get(b"sparring") == b"json"]
            for row in table.to_pylist():
                rows.append(row | {name: json.loads(row[name]) for name in decode if row[name] is not None})
        return rows

    def drop_turns(self, after_step: int) -> int:
        """Remove the turns after a step, and half-written files; returns how many steps went."""
        dropped = [step for step in self.turn_steps() if step > after_step]
        for path in (*map(self.turns_file, dropped), *self.turns.glob(".step-*.parquet.tmp-*")):
            path.unlink()
        return len(dropped)

    # --- lineage ---------------------------------------------------------------------------------

    def write_lineage(self, record: Mapping[str, Any]) -> None:
        """Write lineage.json: which model, which stages, which versions."""
        write_json_atomic(self.lineage, dict(record))

    def read_lineage(self) -> dict[str, Any]:
        """The record of lineage.json."""
        return json.loads(self.lineage.read_text(encoding="utf-8"))


def _step_of(record: Mapping[str, Metric]) -> int:
    step = record.get("step")
    if not isinstance(step, int):
        raise RunFolderError(f"a metrics line has no integer 'step': {dict(record)}")
    return step


def _json_text(value: Any) -> str | None:
    return None if value is None else json.dumps(value, allow_nan=False, ensure_ascii=False)
