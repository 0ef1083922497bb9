"""Checkpoints that survive: written aside, hashed, fsynced, renamed; safetensors and JSON only.

step-000012/
  model/                   whatever the caller writes (transformers' save_pretrained)
  optimizer.safetensors    named tensors; where they are sharded over ranks, optimizer-00001-of-00008.safetensors ...
  state.json               counters, generator states, cursor
  manifest.json            step, format, and size and SHA-256 of every other file; written last

Tensors are whole in the files, so that any number of ranks goes on from a checkpoint.
"""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sparring.files import free_bytes, fsync_path
from sparring.parallel.parts import Digest, TensorFiles, write_tensors
from sparring.parallel.ranks import ALONE, RankError, Ranks

FORMAT = 1
_NAME = re.compile(r"step-(\d{6,})")
_ASIDE = re.compile(r"\.(step-\d{6,})\.(partial|replaced|removed)-(\d+)")
_FULL = {errno.ENOSPC, errno.EDQUOT}
Wanted = Callable[[dict[str, Any]], bool]
"""Whether a checkpoint of this state will do."""
Spared = Callable[[Sequence[dict[str, Any]]], Collection[int]]
"""Of checkpoints by their states, newest first: the places of those that stay, however many are kept."""


class CheckpointError(ValueError):
    """A checkpoint could not be saved or does not fit; the message names path, cause and way out."""


class CheckpointWarning(UserWarning):
    """A checkpoint was saved, but an older one could not be tidied away."""


@dataclass(frozen=True)
class Checkpoint:
    """A saved state whose every byte was verified."""

    step: int
    path: Path
    state: dict[str, Any]

    @property
    def model_path(self) -> Path:
        return self.path / "model"

    def tensors(self) -> TensorFiles:
        """The named tensors, on the CPU, each read when it is asked for."""
        return TensorFiles(sorted(self.path.glob("optimizer*.safetensors")))


# --- saving ------------------------------------------------------------------------------------------


def save_checkpoint(
    root: Path,
    step: int,
    *,
    write_model: Callable[[Path], Mapping[str, Digest] | None],
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    keep: int | None,
    spared: Spared = lambda states: (),
    ranks: Ranks = ALONE,
) -> Path:
    """Save `root/step-<step>` whole or not at all, then keep the newest `keep` (0 or None: all) and those spared.

    `write_model` fills the empty folder it is given, and may give the digests of files that it took while it wrote. A
    checkpoint of the same step is replaced once the new one is complete. On any failure the files written so far are
    removed, older checkpoints stay, and CheckpointError names path, cause, free space and what to do. One writer per
    `root` at a time: hold the run folder's lock. Among several ranks all call this; rank 0 alone makes and moves
    folders.
    """
    final = root / f"step-{step:06d}"
    partial = root / f".{final.name}.partial-{ranks.first('naming a checkpoint', os.getpid)}"
    try:
        ranks.first("making a checkpoint's folder", lambda: _prepare(root, partial))
        known = {f"model/{name}": digest for name, digest in (write_model(partial / "model") or {}).items()}
        known |= write_tensors(partial, "optimizer", tensors, ranks)
        ranks.first("publishing a checkpoint", lambda: _complete(partial, final, step, state, known))
    except RankError:
        raise
    except Exception as error:
        raise CheckpointError(_explain(final, partial, error)) from error
    finally:
        if ranks.leads:
            shutil.rmtree(partial, ignore_errors=True)  # also on Ctrl-C; after the rename nothing is there
    ranks.first("tidying checkpoints", lambda: _retain(root, step, keep, spared))
    return final


def _prepare(root: Path, partial: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    fsync_path(root.parent)
    _remove(partial)
    (partial / "model").mkdir(parents=True)


def _complete(partial: Path, final: Path, step: int, state: Mapping[str, Any], known: Mapping[str, Digest]) -> None:
    """Add state and manifest, see that all is on the disk, put it in place."""
    _require_text_keys(state, "state")
    (partial / "state.json").write_bytes(json.dumps(dict(state), allow_nan=False).encode())
    files = {}
    for path in _files(partial):
        fsync_path(path)
        name = path.relative_to(partial).as_posix()
        size, digest = known.get(name) or (path.stat().st_size, _sha256(path))
        files[name] = {"size": size, "sha256": digest}
    manifest = partial / "manifest.json"
    manifest.write_text(json.dumps({"format": FORMAT, "step": step, "files": files}, indent=1))
    fsync_path(manifest)
    for path in (partial, *partial.rglob("*")):
        if path.is_dir():
            fsync_path(path)
    _publish(partial, final)


def _publish(partial: Path, final: Path) -> None:
    """Rename into place. One of the same name waits aside meanwhile; `clear_leftovers` knows where."""
    aside = final.with_name(f".{final.name}.replaced-{os.getpid()}")
    _remove(aside)
    if final.exists():
        final.rename(aside)
    try:
        partial.rename(final)
    except BaseException:
        if aside.exists():
            aside.rename(final)
        raise
    fsync_path(final.parent)
    _remove(aside)


def _retain(root: Path, step: int, keep: int | None, spared: Spared) -> None:
    """Remove good checkpoints up to this step beyond the newest `keep` and those spared.

    Damaged ones stay, as evidence.

    Good here is: a manifest, and every file of its size; reading all hashes after each save would cost more
    than the save. Later steps, left by a run that was taken back, neither count nor go.
    """
    if not keep:
        return
    good = [path for number, path in _saved(root) if number <= step and not verify_checkpoint(path, hashes=False)]
    if len(good) <= keep:
        return
    staying = spared([_state(path) for path in good])
    for place, path in enumerate(good):
        if place < keep or place in staying:
            continue
        aside = path.with_name(f".{path.name}.removed-{os.getpid()}")
        try:
            # Renamed first: a process killed half-way must not leave something that looks like a checkpoint.
            path.rename(aside)
            _remove(aside)
        except OSError as error:
            message = f"{path} could not be removed ({error}): remove it by hand, or the disk fills up"
            warnings.warn(message, CheckpointWarning, stacklevel=3)


def _explain(final: Path, partial: Path, error: Exception) -> str:
    """Name path, cause, free space and way out. Called before the partial folder is removed."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (match := re.search(r"os error (\d+)", str(error))):
        number = int(match[1])  # safetensors reports a full disk as its own error type
    if number in _FULL:
        way_out = "free some space, choose a folder on another disk, or keep fewer checkpoints"
    elif number == errno.EFBIG:
        way_out = "raise the limit on a file's size (ulimit -f)"
    elif number in (errno.EACCES, errno.EPERM, errno.EROFS):
        way_out = "make the folder writable or choose another"
    else:
        way_out = "put the cause right and resume"
    try:
        written = sum(path.stat().st_size for path in _files(partial))
    except FileNotFoundError:  # another rank is removing it
        written = 0
    newest = next((path.name for _, path in _saved(final.parent) if path != final), "none")
    return (
        f"checkpoint {final} was not saved: {type(error).__name__}: {error} "
        f"({free_bytes(final) / 1e6:.1f} MB free, {written / 1e6:.1f} MB written and removed again). "
        f"Earlier checkpoints are untouched (newest: {newest}). Way out: {way_out}"
    )


# --- finding -----------------------------------------------------------------------------------------


def verify_checkpoint(path: Path, *, hashes: bool = True) -> list[str]:
    """What is wrong with a checkpoint, each as "file: problem"; [] where it is good.

    `hashes=False` looks at names and sizes only. Hidden files that others left (.DS_Store) are overlooked.
    """
    if not path.is_dir():
        return ["not a folder" if path.exists() else "missing"]
    if _ASIDE.fullmatch(path.name):
        return ["a partial save that never finished"]
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        listed = {str(name): (int(want["size"]), str(want["sha256"])) for name, want in manifest["files"].items()}
        version, step = manifest["format"], manifest["step"]
    except FileNotFoundError:
        return ["manifest.json: missing"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"manifest.json: unreadable ({type(error).__name__}: {error})"]
    problems = []
    if version != FORMAT:
        problems.append(f"manifest.json: format {version}, but this version reads {FORMAT}")
    if path.name != f"step-{step:06d}":
        problems.append(f"manifest.json: of step {step}, not of {path.name}")
    for needed in ("optimizer*.safetensors", "state.json"):
        if not fnmatch.filter(listed, needed):
            problems.append(f"{needed.replace('*', '')}: not in the manifest")
    for name, (size, digest) in listed.items():
        problem = _file_problem(path / name, size, digest if hashes else None)
        if problem:
            problems.append(f"{name}: {problem}")
    for file in _files(path):
        name = file.relative_to(path).as_posix()
        if name not in listed and name != "manifest.json" and not file.name.startswith("."):
            problems.append(f"{name}: not in the manifest")
    return problems


def _file_problem(path: Path, size: int, digest: str | None) -> str | None:
    try:
        if not path.is_file():
            return "missing"
        if path.stat().st_size != size:
            return f"size differs ({path.stat().st_size} bytes, not {size})"
        if digest is not None and _sha256(path) != digest:
            return "hash differs"
    except OSError as error:
        return f"unreadable ({error})"
    return None


def latest_good(root: Path, say: Callable[[str], None], wanted: Wanted = lambda state: True) -> Checkpoint | None:
    """The newest checkpoint that verifies and whose state is wanted, or None.

    Damaged newer ones are told to `say` and left alone.
    """
    damaged: list[tuple[Path, str]] = []
    good: Checkpoint | None = None
    for step, path in _saved(root):
        problems = verify_checkpoint(path)
        if not problems:
            state = _state(path)
            if not wanted(state):
                continue
            good = Checkpoint(step, path, state)
            break
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        damaged.append((path, "; ".join(problems[:3]) + more))
    instead = f"using {good.path.name}" if good else "no earlier good one"
    for path, problem in damaged:
        say(f"checkpoint {path.name} is damaged ({problem}): {instead}")
    return good


def _state(path: Path) -> dict[str, Any]:
    return json.loads((path / "state.json").read_bytes())


def drop_later(root: Path, step: int) -> None:
    """Remove the checkpoints after a step: the run goes on from there."""
    for number, path in _saved(root):
        if number > step:
            aside = path.with_name(f".{path.name}.removed-{os.getpid()}")
            path.rename(aside)
            _remove(aside)
    fsync_path(root)


def clear_leftovers(root: Path, say: Callable[[str], None]) -> None:
    """Tidy what killed processes left half-done; call it before `latest_good`, holding the run's lock.

    A checkpoint that was being replaced goes back to its place where the new one never arrived. Folders of
    a process that still lives on this machine are left alone. Everything is told to `say`.
    """
    if not root.is_dir():
        return
    for path in sorted(root.iterdir()):
        match = _ASIDE.fullmatch(path.name)
        if not match:
            continue
        name, kind, process = match[1], match[2], int(match[3])
        if process != os.getpid() and _alive(process):
            say(f"{path.name} belongs to process {process}, which is alive: left alone")
        elif kind == "replaced" and not (root / name).exists():
            path.rename(root / name)
            say(f"checkpoint {name} put back: process {process} ended while replacing it")
        else:
            _remove(path)
            say(f"removed {path.name}, left by process {process}, which ended before it was done")
    fsync_path(root)


# --- small parts -------------------------------------------------------------------------------------


def _saved(root: Path) -> list[tuple[int, Path]]:
    """(step, path) of everything named like a checkpoint, newest first."""
    matches = ((_NAME.fullmatch(path.name), path) for path in (root.iterdir() if root.is_dir() else ()))
    return sorted(((int(match[1]), path) for match, path in matches if match), reverse=True)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _require_text_keys(value: Any, where: str) -> None:
    """JSON would turn the key 3 into "3" without a word, and a resumed run would not find it."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r}: keys must be text")
            _require_text_keys(inner, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for inner in value:
            _require_text_keys(inner, where)


def _alive(process: int) -> bool:
    if os.name == "nt":
        return True  # signal 0 would end the process there
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
