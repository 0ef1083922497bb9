"""vLLM for rollouts, and more than one process: what Sparring adds, and what it gains. One run, all side by side.

    python benchmarks/rollouts.py --vllm .venv-vllm/bin/python --json rollouts.json

On Linux with two cores or more, and an environment with vLLM (`make test-vllm` makes one; it gets Sparring from src).

sampling: 16 prompts, 8 answers of 128 tokens each, by bare vLLM (`LLM.generate`), by Sparring over vLLM in process and
over a server, and by Sparring's own sampler. Sides take turns, each on the first core; the server's front and its
client are on the second, as they would be beside a GPU.

runs: GRPO on these prompts from the command line, trainer on the second core, server on the first: seconds a step by
phase, for LoRA and full fine-tuning, with overlap and without; and one process (on one core) beside two under torchrun
(on two), with the local sampler.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np
import psutil
from transformers import AutoTokenizer

from common import VOCAB, Case, save_model
from sparring.rollout.base import serve_command

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent / "src"
QUIET = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
CPU_VLLM = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
END = "w2"
REWARD = "def reward(queries, answers):\n    return [sum(map(ord, a)) % 97 / 97 for a in answers]\n"


def environment() -> dict[str, str]:
    return {**os.environ, **QUIET, **CPU_VLLM, "PYTHONPATH": str(SOURCE)}


def on(core: int) -> list[str]:
    return ["taskset", "-c", str(core)]


class Side:
    """One interpreter with one engine, asked round by round."""

    def __init__(self, python: str, name: str, target: str, core: int) -> None:
        command = [*on(core), python, str(HERE / "rollout_sides.py"), name, target]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the side
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, env=environment()
        )
        self._line()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Seconds and tokens of a round."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise RuntimeError(self._log.read().decode(errors="replace")[-3000:])
        return line

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def serving(python: str, model: Path, *, lora_rank: int | None) -> Iterator[tuple[str, psutil.Process]]:
    """A server's address and process: its engine on the first core, its front on the second."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    argv, variables = serve_command(model, lora_rank=lora_rank, port=port, dtype="float32", cpu=True)
    command = [python, *argv[1:]]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment() | variables, start_new_session=True
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(url, process, log)
            front = psutil.Process(process.pid)
            _pin(front, 1)
            for child in front.children(recursive=True):
                _pin(child, 0)
            yield url, front
        finally:
            process.terminate()
            process.wait(60)


def _pin(process: psutil.Process, core: int) -> None:
    for thread in process.threads():
        os.sched_setaffinity(thread.id, {core})


def _wait(url: str, process: subprocess.Popen[bytes], log: Any) -> None:
    end = time.monotonic() + 300
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=5).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    log.seek(0)
    raise RuntimeError(log.read().decode(errors="replace")[-3000:])


def sampling(
    python: str,
    model: Path,
    served: tuple[str, psutil.Process],
    prompts: Sequence[Sequence[int]],
    a: argparse.Namespace,
) -> list[Any]:
    """Tokens a second of each side, the sides taking turns; and CPU time, which neighbours on the machine disturb less.

    A server's CPU time is its engine's, and apart its front's with the client's: beside a GPU those have other cores.
    """
    url, front = served
    sides = {
        "bare vLLM": Side(python, "bare", str(model), 0),
        "Sparring, vLLM in process": Side(python, "process", str(model), 0),
        "Sparring, vLLM server": Side(sys.executable, "server", url, 1),
        "Sparring, own sampler": Side(sys.executable, "local", str(model), 0),
    }
    request = {"prompts": prompts, "n": a.answers, "tokens": a.tokens, "seeds": list(range(len(prompts)))}

    def ask(name: str) -> dict[str, Any]:
        before = _cpu(front)
        found = sides[name].ask(request)
        engine, outside = (now - then for now, then in zip(_cpu(front), before, strict=True))
        own = name.endswith("server")
        return {**found, "engine": engine if own else found["cpu"], "front": outside + found["cpu"] if own else 0.0}

    try:
        rounds = [{name: ask(name) for name in sides} for _ in range(1 + a.rounds)][1:]
    finally:
        for side in sides.values():
            side.stop()
    rows: list[dict[str, Any]] = []
    for name in sides:
        each = [one[name] for one in rounds]
        rows.append({"side": name, "tokens_per_second": median(one["tokens"] / one["seconds"] for one in each)})
        for kind in ("engine", "front"):
            rows[-1][f"{kind}_cpu_per_1000"] = median(1000 * one[kind] / one["tokens"] for one in each)
        # Paired by round: what disturbs one side of a round disturbs all.
        rows[-1]["time_ratio"] = median(one[name]["seconds"] / one["bare vLLM"]["seconds"] for one in rounds)
        rows[-1]["cpu_ratio"] = median(one[name]["engine"] / one["bare vLLM"]["engine"] for one in rounds)
    return rows


def _cpu(front: psutil.Process) -> tuple[float, float]:
    """CPU seconds so far of a server's engine processes, and of its front."""

    def used(process: psutil.Process) -> float:
        times = process.cpu_times()
        return times.user + times.system

    return sum(used(child) for child in front.children(recursive=True)), used(front)


def run(folder: Path, name: str, cores: Sequence[int], *settings: str) -> dict[str, Any]:
    """Seconds a step of a run from the command line: medians over its steps but the first, and the wall's."""
    out = folder / name
    words = ["train", "grpo", "--preset", "paper", "--out", str(out), "--reward", f"{folder / 'score.py'}:reward"]
    words += [f"game.prompts={folder / 'prompts.jsonl'}", "evaluation.every=0", "checkpoint.every=0", "threads=1"]
    words += ["learner.lr=1e-6", *settings]
    start = ["-m", "torch.distributed.run", "--nproc-per-node", str(len(cores))] if len(cores) > 1 else []
    command = ["taskset", "-c", ",".join(map(str, cores)), sys.executable, *start, "-m", "sparring", *words]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["step"] > 1]
    assert all(line["tokens/sampled"] > 0 for line in steps)
    keys = ("seconds/step", "seconds/play", "seconds/update", "seconds/weights", "seconds/hidden", "sampler_gap/solver")
    return {"run": name, **{key: median(s[key] for s in steps) for key in keys if key in steps[0]}}


def runs(python: str, model: Path, folder: Path, a: argparse.Namespace) -> list[Any]:
    """Runs on a server, with overlap and without; one process and two."""
    common = (
        f"model.path={model}",
        "model.dtype=float32",
        f"steps={a.steps}",
        f"game.solver.max_new_tokens={a.tokens}",
        f"game.n_answers={a.answers}",
        f"game.n_queries={a.prompts}",
    )
    lora = (*common, "model.tuning=lora", "model.lora.rank=8")
    rows: list[Any] = []
    for tuning, settings, rank in (("LoRA", lora, 8), ("full", common, None)):
        with serving(python, model, lora_rank=rank) as (url, _):
            served = (*settings, "rollout.engine=vllm", f"rollout.url={url}")
            rows.append(run(folder, f"{tuning}, server", [1], *served))
            rows.append(run(folder, f"{tuning}, server, overlap", [1], *served, "rollout.overlap=true"))
        rows.append(run(folder, f"{tuning}, local", [1], *settings))
        rows.append(run(folder, f"{tuning}, local, two ranks", [0, 1], *settings))
    return rows


def save(a: argparse.Namespace, folder: Path) -> Path:
    """The random model; its end token is one of its words, as vLLM wants it: one completion in twenty ends early."""
    save_model(Case(a.size, a.tokens, varied=False), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = END
    tokenizer.save_pretrained(folder)
    generation = {"eos_token_id": tokenizer.convert_tokens_to_ids(END)}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", required=True, help="the Python that has vLLM")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--only", choices=["sampling", "runs"])
    parser.add_argument("--size", default="m", choices=["xs", "s", "m"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--answers", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    a = parser.parse_args()
    python = str(Path(a.vllm).absolute())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = save(a, folder / "model")
        rng = np.random.default_rng(0)
        prompts = [rng.integers(100, VOCAB, rng.integers(26, 66)).tolist() for _ in range(a.prompts)]
        (folder / "score.py").write_text(REWARD)
        texts = [json.dumps({"prompt": " ".join(f"w{i}" for i in ids)}) for ids in prompts]
        (folder / "prompts.jsonl").write_text("\n".join(texts) + "\n")
        found: dict[str, Any] = {}
        if a.only != "runs":
            with serving(python, model, lora_rank=None) as served:
                found["sampling"] = sampling(python, model, served, prompts, a)
            _show(found["sampling"])
        if a.only != "sampling":
            found["runs"] = runs(python, model, folder, a)
            _show(found["runs"])
    a.json.write_text(json.dumps(found, indent=1))


def _show(rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        print(
            " | ".join(f"{key} {value:.4g}" if isinstance(value, float) else str(value) for key, value in row.items())
        )


if __name__ == "__main__":
    main()
