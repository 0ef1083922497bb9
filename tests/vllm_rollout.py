"""A real vLLM server that can be killed, frozen and started again, and what transformers says of its completions."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoModelForCausalLM

from sparring.lm.base import Completion
from sparring.lm.lora import LoraSettings, add_lora, save_adapter
from sparring.rollout.base import serve_command
from sparring.rollout.folders import prepare_folder
from tiny_models import save_tiny_llama
from vllm_server import _end, _environment, _free_port, _wait_for, vllm_python

SHAPE = {"head_dim": 32, "initializer_range": 0.1, "max_position_embeddings": 512}
"""vLLM's CPU attention wants heads of 32 at least; the spread makes predictions that differ."""

RANK = 8


class RolloutServer:
    """Started as `serve_command` says, float32 on the CPU; at one address for its life."""

    def __init__(self, folder: Path, log: Path, *, lora_rank: int | None = None) -> None:
        port = _free_port()
        argv, self._variables = serve_command(folder, lora_rank=lora_rank, port=port, dtype="float32", cpu=True)
        self._argv = [vllm_python(), *argv[1:], "--enforce-eager"]
        self._log = log
        self.url = f"http://127.0.0.1:{port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; it answers some time later."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._argv,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment() | self._variables,
                start_new_session=True,
            )

    def up(self) -> str:
        """Its address; it is started unless it runs."""
        if self.process is None or self.process.poll() is not None:
            self.start()
        assert self.process is not None
        with self._log.open("rb") as log:
            _wait_for(self.url, self.process, log.fileno())
        return self.url

    def kill(self) -> None:
        """kill -9 of all its processes."""
        self._signal(signal.SIGKILL)
        assert self.process is not None
        self.process.wait(20)

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def freeze_engine(self) -> None:
        """Only what computes: its front still answers /health."""
        assert self.process is not None
        for child in psutil.Process(self.process.pid).children(recursive=True):
            child.suspend()

    def end(self) -> None:
        if self.process is not None:
            self.thaw()
            _end(self.process)

    def _signal(self, which: signal.Signals) -> None:
        assert self.process is not None
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, which)


def untied(folder: Path, seed: int = 0, **config: Any) -> Path:
    """A tiny tied Llama, made ready for vLLM on a CPU."""
    tied = save_tiny_llama(folder / f"tied-{seed}", seed=seed, **SHAPE, **config)
    return prepare_folder(tied, folder / f"model-{seed}")


def adapter(base: Path, folder: Path, seed: int, rank: int = RANK) -> Path:
    """A random adapter of a model, as a run saves it."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    add_lora(model, LoraSettings(rank, 16.0), seed)
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=noise) * 0.1)
    save_adapter(model, folder, str(base))
    return folder


def scores(
    folder: Path, prompts: Sequence[Sequence[int]], rows: Sequence[Sequence[Completion]], temperature: float = 1.0
) -> list[torch.Tensor]:
    """Teacher-forced log-probabilities of every completion, by transformers in float32; folder: also an adapter's."""
    model = load(folder)
    found: list[torch.Tensor] = []
    with torch.no_grad():
        for prompt, completions in zip(prompts, rows, strict=True):
            for completion in completions:
                logits = model(torch.tensor([[*prompt, *completion.ids]])).logits[0, len(prompt) - 1 : -1]
                found.append((logits / temperature).log_softmax(-1)[range(len(completion.ids)), list(completion.ids)])
    return found


def gap(
    folder: Path, prompts: Sequence[Sequence[int]], rows: Sequence[Sequence[Completion]], temperature: float = 1.0
) -> float:
    """The largest difference between vLLM's log-probabilities and transformers'."""
    flat = [torch.from_numpy(completion.logprobs) for row in rows for completion in row]
    wanted = scores(folder, prompts, rows, temperature)
    return max(float((a - b).abs().max()) for a, b in zip(flat, wanted, strict=True))


def load(folder: Path) -> torch.nn.Module:
    if (folder / "adapter_config.json").is_file():
        from peft import PeftConfig, PeftModel

        base = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        return PeftModel.from_pretrained(model, str(folder)).eval()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
