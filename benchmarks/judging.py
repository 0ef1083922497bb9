"""Verdicts a second by a served judge: what Sparring adds to bare HTTP requests of the same bodies. One run, all sides.

    python benchmarks/judging.py --vllm .venv-vllm/bin/python --json judging.json
    python benchmarks/judging.py --url http://127.0.0.1:8000 --model NAME --json judging.json

The sides take turns, in an order that changes with the round: bare httpx requests (posted, read as JSON, nothing else),
`EndpointJudge` (templates, retries, verdicts read), and `FrugalJudge` over it, which keeps every verdict in SQLite. The
pairs are the same in every round, and the first round is not counted: vLLM then has their prompts in its cache, so that
what is compared is mostly the clients.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np

from common import VOCAB, Case, save_model
from sparring.evaluation.judges.base import Pair
from sparring.evaluation.judges.cache import VerdictCache
from sparring.evaluation.judges.endpoint import EndpointJudge
from sparring.evaluation.judges.frugal import FrugalJudge
from sparring.evaluation.judges.styles import Weighted
from sparring.evaluation.judges.templates import open_template
from sparring.rollout.base import serve_command

BARE = "bare httpx"
QUIET = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_LOGGING_LEVEL": "ERROR"}


def make_pairs(n: int, words: int) -> list[Pair]:
    """Instructions of 30 words with two answers of so many."""
    rng = np.random.default_rng(0)

    def text(count: int) -> str:
        return " ".join(f"w{i}" for i in rng.integers(100, VOCAB, count))

    return [Pair(text(30), text(words), text(words), str(number)) for number in range(n)]


class Bare:
    """The same requests with nothing around them; its connections stay open between rounds."""

    def __init__(self, url: str, bodies: Sequence[str], concurrency: int) -> None:
        self._runner = asyncio.Runner()
        limits = httpx.Limits(max_connections=concurrency)
        self._client = httpx.AsyncClient(limits=limits, timeout=600, trust_env=False)
        self._url, self._bodies, self._concurrency = f"{url}/v1/chat/completions", bodies, concurrency

    def __call__(self) -> int:
        return self._runner.run(self._all())

    async def _all(self) -> int:
        free = asyncio.Semaphore(self._concurrency)

        async def one(body: str) -> Any:
            async with free:
                response = await self._client.post(
                    self._url, content=body, headers={"Content-Type": "application/json"}
                )
                return response.raise_for_status().json()["choices"][0]

        return len(await asyncio.gather(*map(one, self._bodies)))

    def close(self) -> None:
        self._runner.run(self._client.aclose())
        self._runner.close()


def measure(url: str, model: str, folder: Path, a: argparse.Namespace) -> list[dict[str, Any]]:
    """Verdicts a second of each side, and its time over the bare requests' by round."""
    pairs, template, style = make_pairs(a.pairs, a.words), open_template("weighted"), Weighted()
    bodies = [json.dumps({"model": model, "messages": template.fill(pair), **style.request}) for pair in pairs]
    bare = Bare(url, bodies, a.concurrency)
    judge = EndpointJudge(model, style, template, url=url, timeout=600, concurrency=a.concurrency)
    caches: list[VerdictCache] = []

    def kept() -> int:
        caches.append(VerdictCache(folder / f"{len(caches)}.sqlite"))  # a new one: nothing is known
        return len(FrugalJudge(judge, caches[-1]).judge(pairs))

    sides: dict[str, Callable[[], int]] = {
        BARE: bare,
        "EndpointJudge": lambda: len(judge.judge(pairs)),
        "FrugalJudge, kept in SQLite": kept,
    }
    try:
        rounds = [_round(sides, turn, a.pairs) for turn in range(1 + a.rounds)][1:]
        kept_seconds = _seconds(lambda: len(FrugalJudge(judge, caches[-1]).judge(pairs)), a.pairs)
    finally:
        bare.close()
        judge.close()
        for cache in caches:
            cache.close()
    rows = [
        {
            "side": name,
            "verdicts_per_second": a.pairs / median(one[name] for one in rounds),
            "time_ratio": median(one[name] / one[BARE] for one in rounds),
        }
        for name in sides
    ]
    return [*rows, {"side": "all kept already", "verdicts_per_second": a.pairs / kept_seconds}]


def _round(sides: dict[str, Callable[[], int]], turn: int, pairs: int) -> dict[str, float]:
    names = list(sides)
    names = names[turn % len(names) :] + names[: turn % len(names)]
    return {name: _seconds(sides[name], pairs) for name in names}


def _seconds(side: Callable[[], int], pairs: int) -> float:
    start = time.perf_counter()
    done = side()
    assert done == pairs
    return time.perf_counter() - start


@contextmanager
def serving(python: str, model: Path) -> Iterator[str]:
    """A vLLM server of the model on this machine's CPU."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    argv, variables = serve_command(model, port=port, dtype="float32", cpu=True)
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [python, *argv[1:]], stdout=log, stderr=log, env={**os.environ, **QUIET, **variables}
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(url, process, log)
            yield url
        finally:
            process.terminate()
            process.wait(60)


def _wait(url: str, process: subprocess.Popen[bytes], log: Any) -> None:
    end = time.monotonic() + 300
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=5, trust_env=False).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    log.seek(0)
    raise RuntimeError(log.read().decode(errors="replace")[-3000:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    served = parser.add_mutually_exclusive_group(required=True)
    served.add_argument("--vllm", help="the Python that has vLLM: a random model is served with it")
    served.add_argument("--url", help="a server that is there, with --model")
    parser.add_argument("--model", default="judge", help="the model's name at --url")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--size", default="xs", choices=["xs", "s", "m"])
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--words", type=int, default=200, help="of each answer")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=6)
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if a.url:
            rows = measure(a.url.rstrip("/").removesuffix("/v1"), a.model, folder, a)
        else:
            save_model(Case(a.size, 1, varied=False), folder / "judge")
            with serving(str(Path(a.vllm).absolute()), folder / "judge") as url:
                rows = measure(url, str(folder / "judge"), folder, a)
    settings = {name: getattr(a, name) for name in ("pairs", "words", "concurrency", "rounds", "size")}
    a.json.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1))
    for row in rows:
        print(" | ".join(f"{key} {value:.4g}" if isinstance(value, float) else value for key, value in row.items()))


if __name__ == "__main__":
    main()
