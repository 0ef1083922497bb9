"""A sandbox for tests: bubblewrap's, or a skip that says why there is none (a failure where it is required)."""

from __future__ import annotations

import os

import pytest

from sparring.sandbox import Limits, Sandbox, SandboxError, open_sandbox

QUICK = Limits(seconds=8, cpu_seconds=1, memory=256 * 2**20, processes=16, output=4096, file_size=2**20)
"""Room for any honest program on a busy machine; the dishonest ones don't take long."""


def sandbox_or_skip(limits: Limits = QUICK, workers: int | None = None) -> Sandbox:
    try:
        return open_sandbox(limits=limits, workers=workers)
    except SandboxError as error:
        if os.environ.get("SPARRING_REQUIRE_SANDBOX") == "1":
            raise
        pytest.skip(str(error))
