"""What a training step keeps in memory is counted exactly, and said before it is too late."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metasdf.conditioning.inner_loop import InnerLoopConfig
from metasdf.conditioning.metasdf import MetaSDF
from metasdf.fields import FieldSpec
from metasdf.heads import Distance
from metasdf.memory import GIB, available_bytes, choose, keep_freed_memory, model_bytes, return_freed_memory, saved_bytes, task_bytes
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


GAPS = """
import os, sys
import torch
from metasdf import memory

resident = lambda: int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
assert getattr(memory, sys.argv[1])()
blocks = [torch.ones(2 << 20) for _ in range(20)]  # 8 MiB each
held = resident()
del blocks[::2]
print((held - resident()) / 2**23)
"""


@pytest.mark.skipif(not return_freed_memory(), reason="the C library has no mallopt")
@pytest.mark.parametrize(("how", "blocks"), [("return_freed_memory", 10), ("keep_freed_memory", 0)])
def test_freed_blocks_between_others(how: str, blocks: int) -> None:
    """In a process whose heap has no gaps yet."""
    out = subprocess.run([sys.executable, "-c", GAPS, how], capture_output=True, text=True, check=True).stdout
    assert float(out) == pytest.approx(blocks, abs=0.5)


def test_elsewhere_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False
    assert return_freed_memory() is False


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


# -- a limit smaller than the machine ------------------------------------------------------------------------------------------------------

FREE = 8 * GIB


def machine(root: Path, groups: str, files: dict[str, object]) -> Path:
    """A file system as Linux shows it: 8 GiB free, the process in these control groups, and what stands in them."""
    for name, text in {"proc/meminfo": f"MemTotal: 99 kB\nMemAvailable: {FREE // 1024} kB\n", "proc/self/cgroup": groups, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n" if text != "" else "")
    return root


def group(folder: str, limit: object, used: int, files: int = 0, *, version: int = 2) -> dict[str, object]:
    names = {2: ("memory.max", "memory.current", "inactive_file"), 1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")}
    a, b, c = names[version]
    base = f"sys/fs/cgroup/{folder}".rstrip("/")
    return {f"{base}/{a}": limit, f"{base}/{b}": used, f"{base}/memory.stat": f"anon 5\n{c} {files}"}


V1, V2 = "12:cpu,cpuacct:/job\n4:memory:/job/step\n0::/init", "0::/job/step"
LIMITS: dict[str, tuple[str, dict[str, object], int]] = {
    "no control groups": ("", {}, FREE),
    "no limit": (V2, group("job/step", "max", GIB), FREE),
    "a limit": (V2, group("job/step", 4 * GIB, GIB), 3 * GIB),
    "a limit above": (V2, group("job", 4 * GIB, GIB) | group("job/step", "max", GIB), 3 * GIB),
    "the lowest of two": (V2, group("job", 4 * GIB, GIB) | group("job/step", 3 * GIB, GIB), 2 * GIB),
    "more than the machine has": (V2, group("job/step", 400 * GIB, GIB), FREE),
    "files in the cache are free": (V2, group("job/step", 4 * GIB, 3 * GIB, files=2 * GIB), 3 * GIB),
    "nothing left": (V2, group("job/step", GIB, GIB + 5), 0),
    "in a container": ("0::/", group("", 2 * GIB, GIB), GIB),
    "in a container that sees the path outside": ("0::/host/path", group("", 2 * GIB, GIB), GIB),
    "version 1": (V1, group("memory/job/step", 4 * GIB, 2 * GIB, files=GIB, version=1), 3 * GIB),
    "version 1, no limit": (V1, group("memory/job/step", 0x7FFFFFFFFFFFF000, GIB, version=1), FREE),
    "version 1, of other things": ("3:cpu:/job", group("memory/job", GIB, 0, version=1), FREE),
}


@pytest.mark.parametrize("case", LIMITS)
def test_limits_of_control_groups(tmp_path: Path, case: str) -> None:
    groups, files, free = LIMITS[case]
    assert available_bytes(torch.device("cpu"), root=machine(tmp_path, groups, files)) == free


def test_a_system_that_does_not_tell(tmp_path: Path) -> None:
    assert available_bytes(torch.device("cpu"), root=tmp_path) is None
    (machine(tmp_path, "", {}) / "proc/meminfo").write_text("MemTotal: 5 kB")
    assert available_bytes(torch.device("cpu"), root=tmp_path) is None


# -- what fits, at the least cost ----------------------------------------------------------------------------------------------------------

NEEDS = {False: 10.0, True: 4.0}
CHOICES: dict[str, tuple[dict[str, Any], tuple[int, bool] | None]] = {
    "all at once": ({"free": 1000}, (16, False)),
    "all at once, if just so": ({"free": 160}, (16, False)),
    "two groups": ({"free": 159}, (8, False)),
    "steps that are computed twice, where groups would be many": ({"free": 16}, (4, True)),
    "groups, where steps are computed three times": ({"free": 16, "again": 5 / 3}, (1, False)),
    "even groups rather than full ones": ({"free": 70}, (6, False)),  # 6 + 6 + 4, not 7 + 7 + 2
    "what is fixed counts": ({"free": 160, "fixed": 1}, (8, False)),
    "few groups before computing twice": ({"free": 64}, (6, False)),
    "computing twice before many groups": ({"free": 19}, (4, True)),  # 4 groups with it, 16 without
    "computing twice as the last way": ({"free": 9}, (2, True)),
    "one at a time": ({"free": 4}, (1, True)),
    "nothing": ({"free": 3}, None),
    "no checkpointing there": ({"free": 20, "needs": {False: 10.0}}, (2, False)),
    "no checkpointing there, nothing": ({"free": 9, "needs": {False: 10.0}}, None),
    "checkpointing that gives nothing": ({"free": 20, "needs": {False: 10.0, True: 10.0}}, (2, False)),
    "a split that is asked for": ({"free": 1000, "split": 3}, (3, False)),
    "a split that fits when computed twice": ({"free": 20, "split": 5}, (5, True)),
    "a split that does not fit": ({"free": 20, "split": 6}, None),
    "a split larger than the batch": ({"free": 1000, "split": 99}, (16, False)),
    "unknown memory": ({"free": float("inf")}, (16, False)),
}


@pytest.mark.parametrize("case", CHOICES)
def test_choose(case: str) -> None:
    settings, expected = CHOICES[case]
    settings = {"needs": NEEDS, "fixed": 0, **settings}
    found = choose(16, **settings)
    assert (found[:2] if found else None) == expected
    if found:
        assert found.need == settings["fixed"] + found.at_once * settings["needs"][found.checkpoint] <= settings["free"]


def peak(step: Callable[[], object], path: Path) -> int:
    """The most bytes that a step holds at once on the CPU, as torch's profiler counts them."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    profile.export_chrome_trace(str(path))
    events = [e for e in json.loads(path.read_text())["traceEvents"] if e.get("name") == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e["ts"]):
        held += event["args"]["Bytes"]
        most = max(most, held)
    return most


@pytest.mark.parametrize("gradient", ["fused", "explicit"])
@pytest.mark.parametrize(("steps", "order"), [(1, 1.0), (5, 1.0), (20, 1.0), (5, 0.0)])
def test_the_need_of_a_task_bounds_the_peak(tmp_path: Path, gradient: Any, steps: int, order: float) -> None:
    tasks = 3
    model = MetaSDF(FieldSpec(width=64, hidden_layers=2), InnerLoopConfig(steps=steps, gradient=gradient))
    observed = Observations(torch.rand(tasks, 300, 2) - 0.5, torch.rand(tasks, 300, 1) - 0.5)
    batch = TaskBatch(torch.arange(tasks), observed, observed)
    one = TaskBatch(batch.task[:1], *(Observations(o.x[:1], o.y[:1]) for o in batch[1:]))
    needs = task_bytes(model, lambda: meta_loss(model, Distance(), one), first_order=not order)
    assert (model.config, model.second_order) == (InnerLoopConfig(steps=steps, gradient=gradient), 1.0)  # as it was
    model.second_order = order
    for checkpoint, need in needs.items():
        model.config = InnerLoopConfig(steps=steps, gradient=gradient, checkpoint=checkpoint)
        model.zero_grad()
        measured = (peak(lambda: meta_loss(model, Distance(), batch).backward(), tmp_path / "trace.json") - model_bytes(model.parameters())) / tasks
        assert measured <= need < 2.2 * measured
    assert needs[True] < needs[False] if order and steps > 1 else needs[True] >= 0.9 * needs[False]


@pytest.mark.parametrize("gradient", ["fused", "explicit"])
def test_twenty_checkpointed_steps_take_little_more_than_five(tmp_path: Path, gradient: Any) -> None:
    observed = Observations(torch.rand(2, 512, 2) - 0.5, torch.rand(2, 512, 1) - 0.5)
    batch = TaskBatch(torch.arange(2), observed, observed)
    peaks = {}
    for steps in (5, 20):
        model = MetaSDF(FieldSpec(width=128, hidden_layers=2), InnerLoopConfig(steps=steps, gradient=gradient, checkpoint=True))
        model.zero_grad()
        peaks[steps] = peak(lambda: meta_loss(model, Distance(), batch).backward(), tmp_path / "trace.json")  # noqa: B023
    assert peaks[20] < 1.3 * peaks[5]


def test_other_conditioners_have_no_inner_steps_to_compute_twice() -> None:
    from metasdf.conditioning.base import Conditioner

    x = torch.rand(N, requires_grad=True)
    assert task_bytes(Conditioner(), lambda: x.exp().sum()) == {False: 1.5 * FLOAT * N}
