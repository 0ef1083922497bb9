"""How the commands behave: one clean message for an error, exit codes, resume hints, quiet libraries.

Nothing heavy is imported at the top: `sparring --help` imports this module.
"""

from __future__ import annotations

import difflib
import logging as standard_logging
import os
import shlex
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from sparring.parallel import speaks

if TYPE_CHECKING:
    from sparring.display import Display

DEBUG = "sparring.debug"
HEAD_START = 2.0  # seconds: a launcher ends all ranks once one has ended, so the one that tells comes first
EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143}  # 128 + the signal's number, as shells have it


class Terminated(BaseException):
    """SIGTERM came where no run was there to take it."""


class Commands(click.Group):
    """A group that suggests the nearest command and turns errors into one message and an exit code."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command, or a usage error that names the nearest one."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            if near and "did you mean" not in error.format_message().lower():
                raise click.UsageError(f"{error.message} Did you mean {near[0]!r}?", ctx) from error
            raise

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with _terminable(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return super().invoke(ctx)
            except KeyboardInterrupt as error:
                _leave(ctx, error, "interrupted", EXIT_CODES["SIGINT"])
            except Terminated as error:
                _leave(ctx, error, "terminated", EXIT_CODES["SIGTERM"])
            except BrokenPipeError:
                raise  # click ends quietly where the reader has gone (| head)
            except (ValueError, OSError, RuntimeError) as error:
                _leave_with(ctx, error)


def debug_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--debug`: errors with their traceback."""

    def remember(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
        ctx.find_root().meta[DEBUG] = value or ctx.find_root().meta.get(DEBUG, False)

    option = click.option(
        "--debug", is_flag=True, expose_value=False, callback=remember, help="Show tracebacks of errors."
    )
    return option(command)


def _leave_with(ctx: click.Context, error: Exception) -> None:
    """One message for an error that the user can put right; a bug keeps its traceback."""
    if isinstance(error, ValueError | OSError):
        _leave(ctx, error, f"Error: {error}", 1)
    from sparring.health.guard import UnhealthyRun
    from sparring.learner import DivergedError
    from sparring.memory import MemoryExhaustedError
    from sparring.trainer import InterruptedRun

    if isinstance(error, InterruptedRun):
        _leave(ctx, error, str(error), EXIT_CODES[error.signal])
    if isinstance(error, DivergedError | UnhealthyRun):
        _leave(ctx, error, f"Error: {error}", 1)
    if isinstance(error, MemoryExhaustedError):
        _leave(ctx, error, f"Error: {error}; for a run that is resumed, in its config.yaml", 1)
    raise error


def _leave(ctx: click.Context, error: BaseException, message: str, code: int) -> None:
    if not speaks(error):
        with suppress(Terminated, KeyboardInterrupt):
            time.sleep(HEAD_START)
        ctx.exit(code)
    if ctx.find_root().meta.get(DEBUG):
        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    else:
        click.echo("\n".join([message, *getattr(error, "__notes__", [])]), err=True)
    ctx.exit(code)


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM unwinds like Ctrl-C, so that locks are given back and the display is closed."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if old is None else old)


@contextmanager
def resumable(run: Path, display: Display, verb: str = "train") -> Iterator[None]:
    """Whatever ends a run that was under way says how to go on, by the command that it was started by."""
    try:
        yield
    except BaseException as error:
        if display.training and (run / "config.yaml").is_file():
            error.add_note(f"Go on with: {command(verb, '--resume', shown(run))}")
        raise


def quiet_libraries(display: Display) -> None:
    """Progress bars and advice of libraries off; our own warnings become lines of the display.

    Call it inside a command: the filters end with it.
    """
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # read when the library is imported
    from transformers.utils import logging

    logging.set_verbosity_error()
    standard_logging.getLogger("bitsandbytes").setLevel(standard_logging.ERROR)  # tells of kernels it does without
    logging.disable_progress_bar()
    from sparring.checkpoint import CheckpointWarning
    from sparring.tracking import TrackerWarning

    for category in (CheckpointWarning, TrackerWarning):
        warnings.simplefilter("always", category)

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        display.said(f"note: {message}")

    warnings.showwarning = show  # catch_warnings in Commands.invoke puts the old one back


def plain_streams() -> None:
    """A character that the terminal can't show becomes a question mark, not an error."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


def shown(path: Path) -> str:
    """A path as given to the user: relative where it lies below the working directory."""
    absolute = path.absolute()
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute)


def command(*words: str) -> str:
    """A `sparring` command line, ready to paste."""
    return shlex.join(["sparring", *words])


def free_folder(path: Path) -> Path:
    """The path, or with -2, -3, ... where it is taken."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free
