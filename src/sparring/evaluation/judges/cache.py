"""Verdicts kept in a file, each from the moment it is there: what was paid for once is never asked again."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from sparring.evaluation.judges.base import JudgeError, Pair, Verdict

SETTING = "--judge-cache"
MARK = 0x53504A56  # "SPJV", the file's application_id
VERSION = 1

_TABLE = """CREATE TABLE verdicts (
    key TEXT PRIMARY KEY,
    preference REAL CHECK (preference BETWEEN 0 AND 1),
    text TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL
) WITHOUT ROWID"""


class CacheError(JudgeError):
    """A file that is no cache of verdicts, is damaged, or can't be read or written."""


class VerdictCache:
    """An SQLite file of verdicts by `key_of`, each of which outlives the process; several processes may share it.

    Args:
        path: the file; made, with its folder, where there is none.

    Raises:
        CacheError: the file is no cache of verdicts, or damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with self._named():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Autocommit; a judge's own thread may put, one thread at a time.
            self._file = sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)
            try:
                self._open()
            except BaseException:
                self._file.close()
                raise

    def get(self, key: str) -> Verdict | None:
        """The verdict that was put, None where there is none."""
        with self._named():
            found = self._file.execute(
                "SELECT preference, text, prompt_tokens, completion_tokens FROM verdicts WHERE key = ?", (key,)
            ).fetchone()
        return None if found is None else Verdict(*found)

    def put(self, key: str, verdict: Verdict) -> None:
        """Keep a verdict."""
        # SQLite takes no lone surrogate.
        text = verdict.text.encode(errors="replace").decode()
        row = (key, verdict.preference, text, verdict.prompt_tokens, verdict.completion_tokens)
        with self._named():
            self._file.execute("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?, ?)", row)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _open(self) -> None:
        (mark,) = self._file.execute("PRAGMA application_id").fetchone()
        (version,) = self._file.execute("PRAGMA user_version").fetchone()
        tables = self._file.execute("SELECT count(*) FROM sqlite_master").fetchone()
        new = (mark, version, *tables) == (0, 0, 0)
        if not new and mark != MARK:
            raise CacheError(f"{self.path} is another program's SQLite file, no cache of verdicts; check {SETTING}")
        if not new and version != VERSION:
            raise CacheError(f"{self.path} is a cache of version {version}, not {VERSION}; name another by {SETTING}")
        self._file.execute("PRAGMA journal_mode = WAL")
        self._file.execute("PRAGMA synchronous = NORMAL")  # a killed process loses nothing, only a power cut may
        if new:
            self._make()
        (state,) = self._file.execute("PRAGMA quick_check(1)").fetchone()
        if state != "ok":
            raise CacheError(f"{self.path} is damaged ({state}); move it away, or name another by {SETTING}")

    def _make(self) -> None:
        self._file.execute("BEGIN IMMEDIATE")
        if not self._file.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:  # another process may have
            self._file.execute(_TABLE)
            self._file.execute(f"PRAGMA application_id = {MARK}")
            self._file.execute(f"PRAGMA user_version = {VERSION}")
        self._file.execute("COMMIT")

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            what = "is damaged or no cache of verdicts" if type(error) is sqlite3.DatabaseError else "can't be used"
            raise CacheError(f"{self.path} {what} ({error}); move it away, or name another by {SETTING}") from error
        except OSError as error:
            raise CacheError(f"{self.path} can't be made ({error.strerror}); name another by {SETTING}") from error


def key_of(identity: str, pair: Pair) -> str:
    """Names a verdict: by all that it depends on, which are the judge's identity and the pair's texts."""
    return sha256(json.dumps([identity, pair.instruction, pair.first, pair.second]).encode()).hexdigest()
