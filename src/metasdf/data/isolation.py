"""Jobs in processes of their own, with limits of time and memory: what crashes, hangs or eats memory costs one job and never the others.

`run` gives each job's result or the `Failure` that it ended in, as they come. The engine `local` starts worker processes here; `ray` sends the
jobs to a Ray cluster, where each of its workers has one such process.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pebble import ProcessExpired, ProcessPool

from metasdf.errors import MetaSDFError, UsageError

Engine = Literal["local", "ray"]
Function = Callable[..., Any]
GIB = 2**30
TRY_AGAIN = "the same command with --retry"
AHEAD = 2  # jobs that wait for each worker, so that none is ever idle and results do not pile up


class Limits(NamedTuple):
    """Of one job: seconds, and bytes that its process may allocate for it."""

    seconds: float = 600.0
    memory: int = 8 * GIB


class Failure(NamedTuple):
    """Why there is no result, and what to try; each a line for the user. lasting: the same job would fail again."""

    reason: str
    fix: str
    lasting: bool = True


class Fatal(Exception):
    """Raised by a job to end all of them: the next ones would fail alike. Carries the error to be shown."""

    def __init__(self, error: MetaSDFError) -> None:
        super().__init__(error)
        self.error = error


class Done(NamedTuple):
    job: int
    result: Any  # or a Failure


def run(function: Function, jobs: Sequence[tuple[Any, ...]], *, workers: int | None, limits: Limits, engine: Engine = "local") -> Iterator[Done]:
    """`function(*job)` of each job, in the order in which they end, as (its number, its result or a Failure). `function` is one of a module's.
    workers: how many jobs at a time; None: as many as there are cores, here or in the cluster.

    Raises UsageError where processes cannot be started, or Ray is not installed, and what a job raises as Fatal. Leaving the loop early ends
    the workers.
    """
    if engine == "ray":
        yield from _on_ray(function, jobs, workers=workers, limits=limits)
        return
    workers = min(workers or usable_cores(), len(jobs) or 1)
    with _pool(workers, limits) as pool:
        futures: dict[Future[Any], int] = {}
        following = iter(enumerate(jobs))
        while True:
            for number, job in following:
                futures[pool.schedule(_call, args=(function, job, limits), timeout=limits.seconds)] = number
                if len(futures) >= AHEAD * workers:
                    break
            if not futures:
                return
            for future in wait(futures, return_when=FIRST_COMPLETED).done:
                yield Done(futures.pop(future), _outcome(future, limits))


@contextmanager
def _pool(workers: int, limits: Limits) -> Iterator[ProcessPool]:
    if not main_can_be_imported():
        raise UsageError("Worker processes cannot start", cause="a program from standard input, which a new process cannot import",
                         fix="put the program into a file, below `if __name__ == '__main__':`")  # fmt: skip
    # spawn, not fork: the caller may have started threads (torch does), and a fork copies their locks as they are
    pool = ProcessPool(workers, initializer=_prepare_worker, initargs=(limits.memory,), context=get_context("spawn"))
    try:
        yield pool
    except BrokenProcessPool as error:
        raise UsageError("Worker processes ended before they began", cause="a program without `if __name__ == '__main__':`, which each runs again",
                         fix="put what the program does below that line") from error  # fmt: skip
    finally:
        pool.stop()
        pool.join()


def main_can_be_imported() -> bool:
    """A new process imports the main module; a program read from standard input has none."""
    file = getattr(sys.modules["__main__"], "__file__", None)
    return file is None or Path(file).exists()


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _prepare_worker(memory: int) -> None:
    """One thread for each worker: libraries ask when they are first used. The limit counts what is allocated from here on."""
    for name in ("IGL_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        import resource

        # Data, not address space: reserving without using is what allocators and thread stacks do all the time.
        resource.setrlimit(resource.RLIMIT_DATA, (memory + GIB, memory + GIB))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is a row in the report, not a file of gigabytes
    except (ImportError, ValueError, OverflowError, OSError):  # not on this system: the machine's own limit holds
        pass


def _end_with_parent() -> None:
    """Where the caller is killed, nobody would end a job that hangs."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _call(function: Function, job: tuple[Any, ...], limits: Limits) -> Any:
    """What runs in the worker. Exceptions become failures here, since not all of them survive the way back."""
    try:
        return function(*job)
    except Fatal:
        raise
    except MemoryError:
        return _too_large(limits)
    except MetaSDFError as error:
        return Failure(error.what + (f" ({error.cause})" if error.cause else ""), error.fix)
    # Whatever a stranger's mesh does to any library
    except Exception as error:
        return Failure(f"unexpected {type(error).__name__}: {error}", "report it, with the mesh if it can be shared")


def _outcome(future: Future[Any], limits: Limits) -> Any:
    try:
        return future.result()
    except TimeoutError:
        return Failure(f"took longer than {limits.seconds:g} s", "a longer --time-limit with --force, or simplify the mesh")
    except ProcessExpired as error:
        if error.exitcode == -signal.SIGKILL:
            return _too_large(limits)
        if abs(error.exitcode) == signal.SIGTERM:  # a batch system's, for all processes at once
            return Failure("its process was ended by another one", TRY_AGAIN, lasting=False)
        return Failure(f"its process died ({_signal_name(error.exitcode)})",
                       "more --memory with --force; if it dies again, a geometry library crashes on it: repair the mesh")  # fmt: skip


def _too_large(limits: Limits) -> Failure:
    return Failure(f"needs more than {limits.memory / GIB:.3g} GiB", "more --memory and fewer --workers with --force, or simplify the mesh")


def _signal_name(exitcode: int) -> str:
    return signal.Signals(-exitcode).name if -exitcode in set(signal.Signals) else f"exit code {exitcode}"


def _on_ray(function: Function, jobs: Sequence[tuple[Any, ...]], *, workers: int | None, limits: Limits) -> Iterator[Done]:
    """At most `AHEAD * workers` jobs are with Ray at a time. A lost machine costs the jobs it was at."""
    try:
        import ray
    except ImportError as error:
        raise UsageError("--engine ray needs the ray package", cause="the extra is not installed", fix="pip install 'metasdf[ray]'") from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    workers = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
    remote = ray.remote(num_cpus=1, max_retries=0)(_alone)
    waiting: dict[Any, int] = {}
    following = iter(enumerate(jobs))
    try:
        while True:
            for number, job in following:
                waiting[remote.remote(function, job, limits)] = number
                if len(waiting) >= AHEAD * workers:
                    break
            if not waiting:
                return
            for reference in ray.wait(list(waiting), num_returns=1)[0]:
                number = waiting.pop(reference)
                try:
                    yield Done(number, ray.get(reference))
                except ray.exceptions.RayError as error:
                    yield Done(number, Failure(f"its Ray worker was lost: {type(error).__name__}", TRY_AGAIN, lasting=False))
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)


_own: dict[Limits, ProcessPool] = {}  # of a Ray worker, which does one job at a time and keeps its process for the next


def _alone(function: Function, job: tuple[Any, ...], limits: Limits) -> Any:
    if limits not in _own:
        for pool in _own.values():
            pool.stop()
        _own.clear()
        _own[limits] = ProcessPool(1, initializer=_prepare_worker, initargs=(limits.memory,), context=get_context("spawn"))
    return _outcome(_own[limits].schedule(_call, args=(function, job, limits), timeout=limits.seconds), limits)
