"""Full weights by NCCL, from the trainer's GPU to the server's."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, Protocol, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor

from sparring.rollout.base import EngineError
from sparring.rollout.folders import Shapes, check_folder, weight_files
from sparring.rollout.http import Api
from sparring.rollout.weights import clear_caches

T = TypeVar("T")


class Sender(Protocol):
    """vLLM's trainer side of a transfer, connected to the server."""

    def send_weights(self) -> None:
        """Send all of the source's tensors; returns when the server has taken them."""
        ...


@dataclass(frozen=True)
class NcclGroup:
    """Where this process and the server's workers meet: this process has rank 0."""

    address: str
    port: int
    world_size: int


class NcclTransfer:
    """Full weights, sent from this process's GPU to the server's by NCCL, through vLLM's own transfer engine.

    The server need not see the folder. Both sides need vLLM 0.32 and GPUs that NCCL can connect (never one GPU),
    the server is started with serve_command(nccl=True). Tested are its requests, and vLLM's own sender on it with the
    broadcast replaced; it has not run on GPUs yet.

    Args:
        address, port: of this machine, as the server reaches it; a free port.
        device: where the tensors are sent from.
        connect: gives vLLM's sender for a control client, a source and a meeting point.
    """

    def __init__(
        self,
        address: str,
        port: int,
        *,
        device: str = "cuda",
        connect: Callable[[Control, Source, NcclGroup], Sender] | None = None,
    ) -> None:
        self._address, self._port = address, port
        self._source = Source(device)
        self._connect = connect or nccl_sender
        self._sender: Sender | None = None
        self._shapes: Shapes | None = None

    def load(self, server: Api, folder: Path, version: int) -> str | None:
        """See `WeightPath.load`. A transfer that fails leaves the server without weights: it must be restarted."""
        self._shapes = check_folder(folder, self._shapes)
        self._source.folder = folder
        sender, self._sender = self._sender, None  # used again only where all goes well
        self._sender = _within(server.limit, lambda: self._send(server, sender), server)
        clear_caches(server)
        return None

    def restarted(self) -> None:
        """See `WeightPath.restarted`."""
        self._sender = None

    def _send(self, server: Api, sender: Sender | None) -> Sender:
        if sender is None:
            workers = int(server.get("get_world_size?include_dp=true")["world_size"])
            sender = self._connect(Control(server), self._source, NcclGroup(self._address, self._port, 1 + workers))
        sender.send_weights()
        return sender


class Control:
    """What vLLM's sender asks the server for: its `VLLMWeightSyncClient`, with our limits."""

    def __init__(self, server: Api) -> None:
        self._server = server

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Meet the sender."""
        self._server.post("init_weight_transfer_engine", {"init_info": init_info}, doing="meeting by NCCL")

    def shutdown_weight_transfer_engine(self) -> None:
        """Leave the sender."""
        self._server.post("shutdown_weight_transfer_engine")

    def start_weight_update(self) -> None:
        """Expect weights."""
        self._server.post("start_weight_update")

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        """Receive what the names, dtypes and shapes describe."""
        self._server.post("update_weights", {"update_info": update_info}, doing="receiving weights by NCCL")

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Take the weights into use."""
        body = None if weight_version is None else {"weight_version": weight_version}
        self._server.post("finish_weight_update", body)


@dataclass(frozen=True)
class TensorMeta:
    """What vLLM wants to know of a tensor before it comes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class Source:
    """A folder's tensors as vLLM's `WeightSource`: described first, then one by one on the device."""

    def __init__(self, device: str) -> None:
        self._device = device
        self.folder = Path()

    def metadata(self) -> list[TensorMeta]:
        """In the order of the iteration."""
        return [TensorMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self._tensors("meta")]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return self._tensors(self._device)

    def _tensors(self, device: str) -> Iterator[tuple[str, Tensor]]:
        for file in weight_files(self.folder):
            with safe_open(file, framework="pt", device="cpu") as opened:
                for name in opened.keys():  # noqa: SIM118 - it is no mapping
                    yield name, opened.get_tensor(name).to(device)


def nccl_sender(control: Control, source: Source, group: NcclGroup) -> Sender:
    """vLLM's NCCL sender, connected. Raises EngineError where vLLM is absent."""
    if importlib.util.find_spec("vllm") is None:
        raise EngineError("NCCL transfer needs vLLM in this environment too: pip install 'vllm>=0.32'")
    from vllm.distributed.weight_transfer import WeightTransferTrainerFactory  # pyright: ignore[reportMissingImports]
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo  # pyright: ignore[reportMissingImports]

    info = NCCLTrainerInitInfo(group.address, group.port, group.world_size, rank=0)
    return WeightTransferTrainerFactory.trainer_init(info, client=control, source=source)


def _within(limit: float, work: Callable[[], T], server: Api) -> T:
    """NCCL waits for ever where its peer is gone: let it, in a thread that the process's end doesn't wait for."""
    outcome: Future[T] = Future()
    device = torch.cuda.current_device() if torch.cuda.is_available() else None

    def run() -> None:
        try:
            if device is not None:
                torch.cuda.set_device(device)  # each thread has its own
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again where the result is taken
            outcome.set_exception(error)

    Thread(target=run, name="nccl", daemon=True).start()
    try:
        return outcome.result(limit)
    except RuntimeError as error:  # as a broken connection to another rank would read
        raise server.error(f"sending weights by NCCL failed ({error})") from error
    except TimeoutError as error:
        raise server.error(f"no weights sent by NCCL within {limit:g} s; end this process, its GPU waits") from error
