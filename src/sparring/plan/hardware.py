"""The GPUs that a plan knows: memory, dense bf16 rate, memory bandwidth."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

GIB = 2**30

# Share of a GPU's memory left free: the CUDA context, libraries' workspaces, fragmentation, and what is wrong here.
MARGIN = 0.1


@dataclass(frozen=True)
class GPU:
    """One accelerator.

    memory_gib: GiB in all. tflops: dense bf16 matrix products with fp32 accumulation, 10^12 operations a second.
    bandwidth: memory, TB/s. device: torch's name of the kind, on which defaults and kernels depend.
    """

    name: str
    memory_gib: float
    tflops: float
    bandwidth: float
    device: str = "cuda"

    @property
    def usable(self) -> int:
        """Bytes that a plan may fill: all but the margin."""
        return int(self.memory_gib * GIB * (1 - MARGIN))


# Memory is what nvidia-smi reports (MiB / 1024), which is neither the label's GB nor its GiB. Rates and bandwidths are
# NVIDIA's, halved where a data sheet counts sparsity.
GPUS = {
    # H100 data sheet, SXM5: BF16 1,979 TFLOPS with sparsity, 3.35 TB/s; 81,559 MiB.
    "h100": GPU("H100 SXM", 79.6, 989, 3.35),
    # H200 data sheet, SXM: BF16 1,979 TFLOPS with sparsity, 4.8 TB/s; 143,771 MiB.
    "h200": GPU("H200", 140.4, 989, 4.8),
    # A100 data sheet: BF16 312 TFLOPS dense; 40 GB: 1,555 GB/s, 40,960 MiB; 80 GB SXM: 2,039 GB/s, 81,920 MiB.
    "a100-40": GPU("A100 40 GB", 40.0, 312, 1.555),
    "a100-80": GPU("A100 80 GB", 80.0, 312, 2.039),
    # L40S data sheet: BF16 362 TFLOPS dense, 864 GB/s; 46,068 MiB.
    "l40s": GPU("L40S", 45.0, 362, 0.864),
    # Ada architecture white paper, appendix A: BF16 with FP32 accumulate 165.2 TFLOPS dense, 1,008 GB/s; 24,564 MiB.
    "rtx4090": GPU("RTX 4090", 24.0, 165.2, 1.008),
    # GA102 architecture white paper, appendix A: BF16 with FP32 accumulate 71 TFLOPS dense, 936 GB/s; 24,576 MiB.
    "rtx3090": GPU("RTX 3090", 24.0, 71, 0.936),
    # HGX B200 data sheet, a GPU: BF16 4.5 PFLOPS with sparsity, 7.7 TB/s, 180 GB; 183,359 MiB.
    "b200": GPU("B200", 179.1, 2250, 7.7),
}


def gpu_named(name: str) -> GPU:
    """A GPU by its short name, in any case and with or without separators.

    >>> gpu_named("RTX 4090").memory_gib
    24.0

    Raises:
        ValueError: there is none; it names those there are.
    """
    plain = {_plain(key): gpu for key, gpu in GPUS.items()} | {_plain(gpu.name): gpu for gpu in GPUS.values()}
    found = plain.get(_plain(name))
    if found is None:
        near = difflib.get_close_matches(_plain(name), plain, n=1)
        hint = f"; did you mean {plain[near[0]].name}?" if near else ""
        raise ValueError(f"there is no GPU {name!r} to plan for{hint}; there are {', '.join(GPUS)}")
    return found


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum()).removesuffix("gb")
