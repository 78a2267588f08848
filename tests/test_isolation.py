"""Jobs in processes of their own: whatever one of them does, the others are done, and it is said what happened."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from metasdf.data.isolation import GIB, Failure, Fatal, Limits, run
from metasdf.errors import InputError, UsageError


def act(what: str, value: Any) -> Any:
    """What a mesh may make a library do."""
    if what == "crash":
        ctypes.string_at(0)
    if what == "hang":
        time.sleep(600)
    if what == "loop":
        while True:
            pass
    if what == "eat":
        return np.ones(8 * GIB)
    if what == "exit":
        os._exit(3)
    if what == "ended":
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(600)
    if what == "refuse":
        raise InputError("The mesh has no faces", cause="a point cloud", fix="give a mesh")
    if what == "bug":
        raise ZeroDivisionError("oh")
    if what == "full":
        raise Fatal(InputError("The disk is full"))
    return value, os.environ["IGL_NUM_THREADS"]


def test_each_failure_costs_one_job() -> None:
    bad = ["crash", "loop", "eat", "exit", "refuse", "bug", "ended", "hang"]
    jobs = [("add", 0), *((what, 0) for what in bad), *(("add", k) for k in range(1, 6))]
    found = dict(run(act, jobs, workers=2, limits=Limits(seconds=4, memory=GIB)))
    assert sorted(found) == list(range(len(jobs)))
    assert [found[k] for k in (0, 9, 10, 11, 12, 13)] == [(k, "1") for k in range(6)]
    failures = {what: found[1 + k] for k, what in enumerate(bad)}
    assert all(isinstance(failure, Failure) and failure.fix for failure in failures.values())
    reasons = {what: failure.reason for what, failure in failures.items()}
    assert reasons["crash"] == "its process died (SIGSEGV)" and reasons["exit"] == "its process died (exit code 3)"
    assert reasons["loop"] == reasons["hang"] == "took longer than 4 s"
    assert reasons["eat"] == "needs more than 1 GiB"
    assert reasons["refuse"] == "The mesh has no faces (a point cloud)" and failures["refuse"].fix == "give a mesh"
    assert reasons["bug"] == "unexpected ZeroDivisionError: oh"
    assert reasons["ended"] == "its process was ended by another one"
    assert [what for what, failure in failures.items() if not failure.lasting] == ["ended"]  # that may go well next time


def test_what_all_would_fail_at_ends_the_work() -> None:
    with pytest.raises(Fatal) as caught:
        list(run(act, [("full", 0), *(("add", k) for k in range(50))], workers=1, limits=Limits()))
    assert str(caught.value.error) == "The disk is full"


def test_leaving_early_ends_the_workers() -> None:
    started = time.monotonic()
    for done in run(act, [("add", 1), ("hang", 0), ("hang", 0)], workers=2, limits=Limits()):
        assert done.result == (1, "1")
        break
    assert time.monotonic() - started < 60


def test_no_jobs() -> None:
    assert list(run(act, [], workers=2, limits=Limits())) == []


def test_a_program_from_standard_input_is_told(tmp_path: Path) -> None:
    program = ("from metasdf.data.isolation import run, Limits\n"
               "try:\n    list(run(print, [(1,)], workers=1, limits=Limits()))\n"
               "except Exception as error:\n    print(type(error).__name__, error.fix)\n")  # fmt: skip
    done = subprocess.run([sys.executable, "-"], input=program, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("UsageError put the program into a file")


def test_ray_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match="needs the ray package") as caught:
        list(run(act, [("add", 1)], workers=1, limits=Limits(), engine="ray"))
    assert "metasdf[ray]" in caught.value.fix


class Cluster:
    """A Ray of seven cores that does what it is given when it is asked for it."""

    def __init__(self) -> None:
        self.waiting: list[int] = []
        self.most = 0

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 7.0, "memory": 1e9}

    def remote(self, **_: Any) -> Any:
        return lambda function: SimpleNamespace(remote=lambda function, job, limits: self.waiting.append(job[1]) or job[1])  # type: ignore[func-returns-value]

    def wait(self, waiting: list[int], **_: Any) -> tuple[list[int], list[int]]:
        self.most = max(self.most, len(self.waiting))
        return waiting[:1], waiting[1:]

    def get(self, number: int) -> int:
        self.waiting.remove(number)
        return number

    exceptions = SimpleNamespace(RayError=RuntimeError)


def test_as_many_jobs_as_the_cluster_has_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not as many as this machine has; two of them for each core, so that none waits."""
    for workers, most in ((None, 14), (3, 6)):
        cluster = Cluster()
        monkeypatch.setitem(sys.modules, "ray", cluster)
        assert len(list(run(act, [("add", k) for k in range(40)], workers=workers, limits=Limits(), engine="ray"))) == 40
        assert cluster.most == most


def test_a_local_ray() -> None:
    ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}})
    try:
        jobs = [("add", 0), ("crash", 0), ("refuse", 0), ("loop", 0), ("add", 4)]
        found = dict(run(act, jobs, workers=2, limits=Limits(seconds=4, memory=GIB), engine="ray"))
        assert found[0] == (0, "1") and found[4] == (4, "1")
        assert [found[k].reason for k in (1, 2, 3)] == ["its process died (SIGSEGV)", "The mesh has no faces (a point cloud)", "took longer than 4 s"]
    finally:
        ray.shutdown()
