"""What a training step keeps in memory is counted exactly, and said before it is too late."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from metasdf.conditioning.inner_loop import InnerLoopConfig
from metasdf.conditioning.metasdf import MetaSDF
from metasdf.fields import FieldSpec
from metasdf.heads import Distance
from metasdf.memory import available_bytes, keep_freed_memory, model_bytes, saved_bytes
from metasdf.tasks import Observations, TaskBatch
from metasdf.train import meta_loss

N = 1000
FLOAT = 4


@pytest.fixture
def x() -> Tensor:
    return torch.rand(N, requires_grad=True)


STEPS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "a product with itself keeps one storage": (lambda x: (x * x).sum(), N),
    "results that are kept": (lambda x: x.exp().exp().sum(), 2 * N),
    "one storage for a tensor and its views": (lambda x: (x[:500] * x[500:]).sum() + (x * x).sum(), N),
    "a view keeps all of its storage": (lambda x: (x[:10] * x[:10]).sum(), N),
    "nothing for sums": (lambda x: (x + x).sum(), 0),
    "what is freed in between does not count": (lambda x: torch.stack([(x + k).sum() for k in range(5)]).sum(), 0),
}


@pytest.mark.parametrize("case", STEPS)
def test_saved_bytes(x: Tensor, case: str) -> None:
    step, numbers = STEPS[case]
    assert saved_bytes(lambda: step(x)) == FLOAT * numbers
    with torch.no_grad():
        assert saved_bytes(lambda: step(x)) == 0


def test_addresses_that_are_used_again_count_again(x: Tensor) -> None:
    """Many an exp would get the address of one before, if the count did not hold on to it."""

    def step() -> Tensor:
        for _ in range(50):
            x.exp().sum()
        return x

    assert saved_bytes(step) == 50 * FLOAT * N


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is of Linux")
def test_counting_keeps_nothing() -> None:
    """A hook that returns the very tensor it was given makes a cycle in C++ that no collector finds: 16 MiB a call."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    x = torch.rand(1 << 22, requires_grad=True)
    assert saved_bytes(lambda: x.exp().sum()) == FLOAT << 22
    before = resident()
    for _ in range(8):
        saved_bytes(lambda: x.exp().sum())
    assert resident() - before < 64 << 20


def test_counting_changes_no_gradient(x: Tensor) -> None:
    kept: list[Tensor] = []
    saved_bytes(lambda: kept.append(x.exp().sum()) or kept[0])
    kept[0].backward()
    assert x.grad is not None and torch.equal(x.grad, x.exp())


def test_a_training_step_is_counted_in_its_parts() -> None:
    """More inner steps keep more, checkpointing keeps less, and so does the first order."""

    def kept(*, second_order: float = 1.0, **config: object) -> int:
        model = MetaSDF(FieldSpec(width=16, hidden_layers=1), InnerLoopConfig(**{"steps": 4, **config}))  # type: ignore[arg-type]
        model.second_order = second_order
        observed = Observations(torch.rand(1, 200, 2) - 0.5, torch.rand(1, 200, 1) - 0.5)
        return saved_bytes(lambda: meta_loss(model, Distance(), TaskBatch(torch.zeros(1, dtype=torch.long), observed, observed)))

    assert kept() > kept(steps=2) > kept(steps=1)
    assert kept(checkpoint=True) < kept()
    assert kept(second_order=0.0) < kept() / 2


def test_model_bytes() -> None:
    assert model_bytes([torch.zeros(3, 5), torch.zeros(7, dtype=torch.float64)]) == 15 * 4 + 7 * 8
    assert model_bytes([]) == 0


def test_keep_freed_memory() -> None:
    done = keep_freed_memory()
    assert isinstance(done, bool)
    assert torch.rand(1 << 20).sum() > 0  # memory still works
    assert keep_freed_memory() is done


def test_elsewhere_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False


def test_a_c_library_without_mallopt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert keep_freed_memory() is False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is of Linux")
def test_available_bytes() -> None:
    free = available_bytes(torch.device("cpu"))
    assert free is not None and 2**20 < free < 2**50
    assert free % 1024 == 0


def test_available_bytes_of_an_unknown_device() -> None:
    assert available_bytes(torch.device("meta")) is None
