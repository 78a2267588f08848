"""Memory: keep what glibc frees, and say what a training step will need before it runs."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

GIB = 2**30


def keep_freed_memory() -> bool:
    """Ask glibc to keep large freed blocks instead of returning each to the kernel: eager training on the CPU otherwise spends
    much of its time in page faults. True where it was done; elsewhere nothing happens."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # musl and other C libraries
        return False
    trim_threshold, top_pad, mmap_threshold, arena_max = -1, -2, -3, -8
    # One arena for all threads: the arenas of further threads give memory back whatever the threshold.
    done = [mallopt(mmap_threshold, 1 << 30), mallopt(trim_threshold, (1 << 31) - 1), mallopt(top_pad, 256 << 20), mallopt(arena_max, 1)]
    return all(done)


def saved_bytes(step: Callable[[], Tensor]) -> int:
    """Bytes that autograd keeps for the backward pass of `step()`, each storage counted once."""
    seen: dict[int, int] = {}
    kept: list[Tensor] = []  # alive until the end, so that no address is reused

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        kept.append(tensor.detach())
        return kept[-1]  # not the tensor itself: a graph that holds its own output is never freed

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(seen.values())


def model_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def available_bytes(device: torch.device) -> int | None:
    """Free memory of the device, None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if device.type != "cpu" or not meminfo.is_file():
        return None
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None
