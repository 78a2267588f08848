"""Several processes on one run, as torchrun starts them: sums over all, and agreement on what comes next. One process alone does nothing here."""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from metasdf.errors import TrainingError, UsageError

TIMEOUT = timedelta(minutes=10)  # the others wait this long for one of them; validation by the first process takes seconds


class Group(NamedTuple):
    """The processes of a run. The first one (`main`) speaks, validates and writes; every method is called by all of them in the same order."""

    rank: int = 0
    size: int = 1
    local: int = 1  # processes on this machine

    @property
    def main(self) -> bool:
        return self.rank == 0

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Each tensor becomes its sum over the processes: one buffer, one exchange, the same bits everywhere."""
        if self.size == 1:
            return
        flat = torch.cat([t.detach().reshape(-1) for t in tensors])
        with self._heard():
            dist.all_reduce(flat)
        _fill(tensors, flat)

    def agree(self, *values: float) -> tuple[float, ...]:
        """The largest of each value over the processes. A value that only one of them knows is 0 in the others."""
        if self.size == 1:
            return values
        found = torch.tensor(values, dtype=torch.float64)
        with self._heard():
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return tuple(found.tolist())

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Each tensor becomes that of the first process. Any dtype whose values float64 holds."""
        if self.size == 1:
            return
        flat = torch.cat([t.detach().reshape(-1).to("cpu", torch.float64) for t in tensors])
        with self._heard():
            dist.broadcast(flat, 0)
        _fill(tensors, flat)

    def differing(self, text: str) -> list[int]:
        """The processes whose text is not that of the first one."""
        if self.size == 1:
            return []
        own = torch.tensor(list(hashlib.sha256(text.encode()).digest()), dtype=torch.uint8)
        found = [torch.empty_like(own) for _ in range(self.size)]
        with self._heard():
            dist.all_gather(found, own)
        return [rank for rank, other in enumerate(found) if not torch.equal(other, found[0])]

    @contextmanager
    def _heard(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise TrainingError(f"process {self.rank} of {self.size} lost the others", cause="one of them ended, and its own message says why",
                                fix="mend that and give the same command: the run goes on from its last checkpoint") from error  # fmt: skip


@torch.no_grad()
def _fill(tensors: Sequence[Tensor], flat: Tensor) -> None:
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view(tensor.shape))


def _asked() -> int:
    return int(os.environ.get("WORLD_SIZE") or 1)


def own_device(name: str) -> str:
    """With several processes, "auto" and "cuda" are one GPU for each process of a machine: cuda:LOCAL_RANK."""
    if _asked() > 1 and name in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return name


@contextmanager
def processes(device: torch.device, *, threads: int | None = None) -> Iterator[Group]:
    """Joins the processes that torchrun started (it sets WORLD_SIZE, RANK and where to meet), or gives this one alone.

    On the CPU they share the cores of their machine, unless `threads` or OMP_NUM_THREADS says otherwise.
    Raises UsageError where they do not find each other.
    """
    if _asked() == 1:
        yield Group()
        return
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"several processes cannot train on {device.type}", fix="--device cpu, or one process")
    local = int(os.environ.get("LOCAL_WORLD_SIZE") or _asked())
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif threads is None and os.environ.get("OMP_NUM_THREADS", "1") == "1":  # torchrun itself sets 1 where nothing is set
        torch.set_num_threads(max(1, _cores() // local))
    # Its functions have the group of the day as a default argument. Loaded later (an optimiser does), it would keep the group's threads alive past
    # the end below, and they can abort the process while Python ends.
    importlib.import_module("torch.distributed.nn")
    try:
        dist.init_process_group("gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl", timeout=TIMEOUT)
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"WORLD_SIZE is {_asked()}, but the processes did not find each other", cause=str(error).splitlines()[0],
                         fix="torchrun --nproc-per-node N -m metasdf -- train ...; for one process unset WORLD_SIZE") from error
    group = Group(dist.get_rank(), dist.get_world_size(), local)
    yield group  # after an error nothing is closed: the process ends, and by that the others see it
    group.agree(0)  # together: where one process is gone, torchrun ends the others, and the first may still be writing
    dist.destroy_process_group()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
