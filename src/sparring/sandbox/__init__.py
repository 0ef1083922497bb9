"""Where programs of a model run: bubblewrap on this machine, or a SandboxFusion server."""

from __future__ import annotations

from pathlib import Path

from sparring.sandbox.base import Ending, Limits, Outcome, Program, Sandbox, SandboxError

__all__ = ["Ending", "Limits", "Outcome", "Program", "Sandbox", "SandboxError", "open_sandbox"]


def open_sandbox(
    *,
    url: str | None = None,
    python: str | Path | None = None,
    workers: int | None = None,
    limits: Limits | None = None,
) -> Sandbox:
    """A sandbox that has shown that it works.

    Args:
        url: a SandboxFusion server's, http://host:port; None: bubblewrap on this machine.
        python: interpreter that programs run under, with the packages of its environment; None: this one's base
            installation, the standard library alone. Not with a url.
        workers: programs at once; None: this process's CPU cores.
        limits: what one program may use; None: `Limits()`.

    Raises:
        SandboxError: there is no sandbox here, and why: nothing ever runs outside one.
        ValueError: settings that contradict each other.
    """
    from sparring.sandbox.bubblewrap import Bubblewrap
    from sparring.sandbox.remote import Remote

    if url is None:
        return Bubblewrap(python=python, workers=workers, limits=limits or Limits())
    if python is not None:
        raise ValueError("a sandbox by url brings its own interpreter: leave python empty")
    return Remote(url, workers=workers, limits=limits or Limits())
