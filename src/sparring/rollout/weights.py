"""How new weights get into a vLLM server: it reads a folder or an adapter that both see (or see `nccl`).

What vLLM 0.32 does with a folder that doesn't fit was tried. One that isn't there leaves it without weights, and its
next completion ends it. One of other shapes, or with layers missing, it takes without a word. So folders are compared
with the served model's here, and after a refusal the weights from before are put back.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from sparring.rollout.base import EngineError
from sparring.rollout.folders import adapter_rank, check_folder, tensor_shapes
from sparring.rollout.http import Api, Lost


class WeightPath(Protocol):
    """A way for new weights to a server."""

    def load(self, server: Api, folder: Path, version: int) -> str | None:
        """Put the folder's weights in place, and clear the caches of what the old ones computed.

        Gives the name under which the trained model is asked for from now on; None: the served model's. Raises
        EngineError where they can't be taken, Lost where the server is gone.
        """
        ...

    def restarted(self) -> None:
        """The server has been started anew: what it was given is gone."""
        ...


class FolderReload:
    """Full weights from a folder that this process and the server see under the same path.

    Args:
        start: what the server was started from. Where that is a folder here, updates must have its shapes; else those
            of the first update.
        cpu: whether the server computes on a CPU, where tied embeddings would part.
    """

    def __init__(self, start: str, *, cpu: bool = False) -> None:
        self._start = self._last = start
        self._cpu = cpu
        self._shapes = tensor_shapes(Path(start)) if Path(start).is_dir() else None

    def load(self, server: Api, folder: Path, version: int) -> str | None:
        """See `WeightPath.load`."""
        self._shapes = check_folder(folder, self._shapes, cpu=self._cpu)
        try:
            self._reload(server, str(folder))
        except EngineError as error:
            with suppress(EngineError, Lost):  # the first error says more
                self._reload(server, self._last)
            raise EngineError(f"{error}\nIt must see {folder} under this very path") from error
        self._last = str(folder)
        return None

    def reset(self, server: Api) -> None:
        """Put the weights in place that the server was started with."""
        self._last = self._start
        self._reload(server, self._start)

    def restarted(self) -> None:
        """See `WeightPath.restarted`."""
        self._last = self._start

    def _reload(self, server: Api, path: str) -> None:
        request = {"method": "reload_weights", "kwargs": {"weights_path": path}}
        server.post("collective_rpc", request, doing=f"loading weights from {path}")
        clear_caches(server)


class AdapterReload:
    """Adapters, each under a name of its own: none can be taken for another one, nor for the base."""

    def __init__(self) -> None:
        self._prefix = f"sparring-{uuid4().hex[:8]}"
        self._count = 0
        self._name: str | None = None

    def load(self, server: Api, folder: Path, version: int) -> str | None:
        """See `WeightPath.load`."""
        rank = adapter_rank(folder)
        self._count += 1
        name = f"{self._prefix}-{version}.{self._count}"
        request = {"lora_name": name, "lora_path": str(folder)}
        try:
            server.post("v1/load_lora_adapter", request, doing=f"loading the adapter {folder}")
        except EngineError as error:
            command = server.start_command(lora_rank=rank)
            what = f"It must see {folder} under this very path, and be started as\n  {command}"
            raise EngineError(f"{error}\n{what}") from error
        before, self._name = self._name, name
        if before is not None:
            server.post("v1/unload_lora_adapter", {"lora_name": before})
        clear_caches(server)
        return name

    def restarted(self) -> None:
        """See `WeightPath.restarted`."""
        self._name = None


def clear_caches(server: Api) -> None:
    """Forget what the old weights computed, of images too."""
    answer = server.post("reset_prefix_cache?reset_running_requests=true")
    if not (isinstance(answer, dict) and answer.get("success")):
        raise server.error("can't clear its prefix cache, so old and new weights would mix")
    if server.pixels is not None:
        # vLLM's scheduler would go on to count on encoded images that a reload has thrown away.
        server.post("reset_mm_cache")
        server.post("reset_encoder_cache")
