"""A real vLLM server for tests, from an interpreter of its own: `make test-vllm` makes that and names it.

Not in a folder called vllm: beside the other tests, that would pass for the package wherever vLLM is not installed.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

INTERPRETER = "SPARRING_VLLM_PYTHON"
REQUIRED = "SPARRING_REQUIRE_VLLM"
STARTUP = 300.0
"""Seconds until a server must answer; about 30 are usual."""


def vllm_python() -> str:
    """The interpreter that has vLLM; skips the test where none is named, or fails it where one is required."""
    named = os.environ.get(INTERPRETER)
    if named and Path(named).is_file():
        return named
    reason = f"{INTERPRETER} names no interpreter with vLLM ({named or 'it is not set'}); make test-vllm sets it"
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def start_vllm(folder: Path, *arguments: str) -> Iterator[str]:
    """Serve the model in a folder on loopback, float32 on the CPU, and give the address; it ends with the block."""
    port = _free_port()
    command = [vllm_python(), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager", *arguments]
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=_environment(), start_new_session=True
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_for(url, server, log.fileno())
            yield url
        finally:
            _end(server)


def _environment() -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}}
    return ours | {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }


def _wait_for(url: str, server: subprocess.Popen[bytes], log: int) -> None:
    end = time.monotonic() + STARTUP
    with httpx.Client(trust_env=False, timeout=5.0) as client:
        while time.monotonic() < end and server.poll() is None:
            try:
                if client.get(f"{url}/health").is_success:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.25)
    how = "did not answer in time" if server.poll() is None else f"ended with status {server.returncode}"
    tail = os.pread(log, 8000, max(0, os.fstat(log).st_size - 8000)).decode(errors="replace")
    pytest.fail(f"vLLM {how}; the end of its log:\n{tail}")


def _end(server: subprocess.Popen[bytes]) -> None:
    """Its workers are processes too: the whole group ends."""
    for how, patience in ((signal.SIGTERM, 20.0), (signal.SIGKILL, 20.0)):
        try:
            os.killpg(server.pid, how)
            server.wait(patience)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
