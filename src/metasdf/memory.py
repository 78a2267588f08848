"""Memory: keep what glibc frees, and say what a training step will need before it runs."""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from metasdf.conditioning.base import Conditioner
from metasdf.conditioning.metasdf import MetaSDF

GIB = 2**30


def keep_freed_memory() -> bool:
    """Ask glibc to keep large freed blocks instead of returning each to the kernel: eager training on the CPU otherwise spends
    much of its time in page faults. True where it was done; elsewhere nothing happens."""
    return _mallopt(mmap_threshold=1 << 30, trim_threshold=(1 << 31) - 1, top_pad=256 << 20)


def return_freed_memory() -> bool:
    """The opposite, for where memory is short: every large block is the kernel's again when it is freed, so that no gaps stay between those in
    use. Left alone, glibc keeps freed blocks of up to 32 MiB: 20 checkpointed steps then hold twice what they use. True where it was done."""
    return _mallopt(mmap_threshold=1 << 20, trim_threshold=1 << 20, top_pad=0)


def _mallopt(*, mmap_threshold: int, trim_threshold: int, top_pad: int) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # musl and other C libraries
        return False
    return all([mallopt(-3, mmap_threshold), mallopt(-1, trim_threshold), mallopt(-2, top_pad)])


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


def task_bytes(model: Conditioner, step: Callable[[], Tensor], *, first_order: bool = False) -> dict[bool, float]:
    """What one task needs when its backward pass is at its peak, without (False) and with (True) checkpointing, where a model has it.

    step: the loss of one task. The need is what autograd keeps and, beside it, the work on one inner step. The factors bound the peaks measured
    for all forms of the gradient, first and second order, ReLU and sine, 1 and 5 steps; they were at most 1.5 times too large.
    """
    if not isinstance(model, MetaSDF):
        return {False: 1.5 * saved_bytes(step)}
    config, order = model.config, model.second_order

    def kept(*, checkpoint: bool, second_order: float = 1.0) -> int:
        model.config, model.second_order = replace(config, checkpoint=checkpoint), second_order
        return saved_bytes(step)

    try:
        plain, bare = kept(checkpoint=False), kept(checkpoint=True)
        inside = (plain - bare) / config.steps  # what one inner step keeps
        if not first_order:
            return {False: plain + 0.6 * inside, True: bare + 1.5 * inside}
        return dict.fromkeys((False, True), kept(checkpoint=False, second_order=0.0) + 0.8 * inside)
    finally:
        model.config, model.second_order = config, order


def model_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def available_bytes(device: torch.device, *, root: Path = Path("/")) -> int | None:
    """Free memory of the device, None where the system does not tell. On the CPU a container's or a batch job's limit counts too.

    root: where /proc and /sys are found, for tests.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = root / "proc/meminfo"
    if device.type != "cpu" or not meminfo.is_file():
        return None
    free = [int(line.split()[1]) * 1024 for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:")]
    return min([*free, *_granted(root)], default=None)


def _granted(root: Path) -> Iterator[int]:
    """What each control group around this process still grants. Files read long ago count as free: the kernel drops them first."""
    groups = root / "proc/self/cgroup"
    for line in groups.read_text().splitlines() if groups.is_file() else []:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            folder, limit, used, files = root / "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):  # version 1
            folder, limit, used, files = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        for part in ("", *path.strip("/").split("/")):  # the limits above hold as well; in a container the first folder may be all there is
            folder /= part
            with suppress(OSError, ValueError):  # no such file, or "max": no limit
                room = int((folder / limit).read_text()) - int((folder / used).read_text())
                stat = dict(row.split() for row in (folder / "memory.stat").read_text().splitlines())
                yield max(0, room + int(stat.get(files, 0)))


class Choice(NamedTuple):
    """How the tasks of a step go through memory: how many at a time, whether inner steps are computed again, and bytes at the peak."""

    at_once: int
    checkpoint: bool
    need: float


AGAIN = 4 / 3  # time of a checkpointed step: of three passes the first is done twice (measured: 1.2 to 1.37)
AGAIN_IN_RUNS = 5 / 3  # of many steps, checkpointed in runs and one by one within them: three times (measured: 1.5 to 1.6)
GROUP = 0.5  # time that one more group costs, in tasks: it sums gradients of all parameters (measured: 0.4 to 0.8 at 512 + 512 points)


def choose(
    tasks: int, needs: Mapping[bool, float], *, fixed: float, free: float, split: int | None = None, again: float = AGAIN
) -> Choice | None:
    """The way for `tasks` through `free` bytes that takes the least time, None where there is none.

    needs: bytes for one task without (False) and with (True) checkpointing, as far as that may be chosen; fixed: bytes whatever the tasks;
    split: tasks at a time where that is not to be chosen; again: time of a checkpointed step, relative to a plain one.
    """
    found = []
    for checkpoint, need in needs.items():
        wanted = min(split or tasks, tasks)
        at_once = int(min(wanted, (free - fixed) / max(need, 1)))
        if at_once < (wanted if split else 1):
            continue
        groups = math.ceil(tasks / at_once)
        at_once = at_once if split else math.ceil(tasks / groups)  # as even as they can be
        found.append((tasks * (again if checkpoint else 1) + GROUP * groups, Choice(at_once, checkpoint, fixed + need * at_once)))
    return min(found)[1] if found else None
