"""What the benchmarks share: tasks in closed form, sides timed in turn, memory of fresh processes, results with their origin."""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import click
import torch
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from metasdf.checkpoint import write_json
from metasdf.memory import keep_freed_memory
from metasdf.provenance import commit, hardware
from metasdf.tasks import Observations, TaskBatch

T = TypeVar("T")
Side = Callable[[], float]  # works once and returns its milliseconds
MIB = 2**20
SIZE = click.IntRange(1)


# -- what is computed ------------------------------------------------------------------------------------------------------------------


def discs(batch: int, *, context: int, query: int, seed: int = 0) -> TaskBatch:
    """Tasks that need no files and have any number of points: discs within the image square, with exact distances."""
    generator = torch.Generator().manual_seed(seed)
    centre = (torch.rand(batch, 1, 2, generator=generator) - 0.5) * 0.4
    radius = 0.1 + 0.15 * torch.rand(batch, 1, 1, generator=generator)

    def draw(n: int) -> Observations:
        x = torch.rand(batch, n, 2, generator=generator) - 0.5
        return Observations(x, (x - centre).norm(dim=-1, keepdim=True) - radius)

    return TaskBatch(torch.arange(batch), draw(context), draw(query))


# -- time ------------------------------------------------------------------------------------------------------------------------------


def clocked(work: Callable[[], object]) -> Side:
    def side() -> float:
        start = time.perf_counter()
        work()
        return (time.perf_counter() - start) * 1e3

    return side


def in_turn(sides: Mapping[str, Side], *, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every side in every round, after one round that warms up and is not kept.

    A round runs each side once, and every other round runs them backwards: a machine that turns slower does so for all of them, and no
    side always follows the same neighbour.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(-1, rounds):
        say(f"round {turn + 1} of {rounds}" if turn >= 0 else "warming up")
        for name in list(sides)[:: 1 if turn % 2 else -1]:
            milliseconds = sides[name]()
            if turn >= 0:
                times[name].append(milliseconds)
    return times


def summary(times: Sequence[float], *, per: float = 1.0) -> dict[str, Any]:
    """Median and minimum, divided by `per`, and every round's own value."""
    values = [t / per for t in times]
    return {"ms": statistics.median(values), "ms_min": min(values), "ms_rounds": values}


def ratio(times: Sequence[float], others: Sequence[float]) -> float:
    """times / others: the median over rounds of each round's own ratio, in which a slow minute cancels."""
    return statistics.median(a / b for a, b in zip(times, others, strict=True))


# -- processes and memory --------------------------------------------------------------------------------------------------------------


def fresh_process(*, keep: bool, threads: int) -> ProcessPoolExecutor:
    """One new process for functions of the running script: its memory, and what its C library does with it, are its own.

    It is forked from a server that has imported torch but never computed, so it starts at once and inherits no threads.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "metasdf.train"])
    return ProcessPoolExecutor(1, mp_context=context, initializer=set_up, initargs=(keep, threads))


def fresh(function: Callable[..., T], *args: Any, keep: bool = True) -> T:
    """What `function` returns in a new process with as many threads as this one; freed memory is kept there, as in a training, or not."""
    with fresh_process(keep=keep, threads=torch.get_num_threads()) as process:
        return process.submit(function, *args).result()


def set_up(keep: bool, threads: int) -> None:
    """Threads (0: as torch likes), and freed memory kept or returned to the system."""
    torch.set_flush_denormal(True)  # as every command of metasdf does
    if threads:
        torch.set_num_threads(threads)
    if keep:
        keep_freed_memory()


def peak_bytes(work: Callable[[], object], *, warm_up: Callable[[], object], times: int = 2) -> int:
    """How far resident memory rises above where it was, while `work` runs `times` times; for fresh processes.

    `warm_up` does the same at a tiny size: what libraries take once, whatever the size, is not counted. Twice, because what a first
    training step leaves behind is there in all later ones.
    """
    warm_up()
    before = _resident("VmRSS")
    with suppress(OSError):  # the peak so far is forgotten where the kernel lets us; it is that of the warm-up otherwise
        Path("/proc/self/clear_refs").write_text("5")
    for _ in range(times):
        work()
    return _resident("VmHWM") - before


def _resident(key: str) -> int:
    """VmRSS (now) or VmHWM (the highest so far) in bytes; without /proc the highest for both."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# -- what comes out --------------------------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    """Progress, apart from the results on standard output."""
    print(text, file=sys.stderr, flush=True)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table that is Markdown too; the first column is text, the others are numbers."""
    rich = Table(title=title, title_justify="left", box=MARKDOWN)
    for index, column in enumerate(columns):
        rich.add_column(column, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        rich.add_row(*row)
    Console(width=140, highlight=False).print(rich)


def origin() -> dict[str, Any]:
    """Where the numbers come from."""
    return {"hardware": hardware(torch.device("cpu")), "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(), "torch": torch.__version__, "commit": commit()}  # fmt: skip


def write(path: Path | None, benchmark: str, settings: dict[str, Any], results: dict[str, Any], definition: dict[str, str]) -> None:
    if path is not None:
        write_json(path, {"benchmark": benchmark, **origin(), "settings": settings, **results, "definition": definition})
        say(f"written: {path}")


def numbers(context: click.Context, parameter: click.Parameter, text: str) -> tuple[int, ...]:
    """A click callback: "1,2,5" as whole numbers, in ascending order."""
    try:
        values = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError as error:
        raise click.BadParameter("give whole numbers separated by commas") from error
    if values[0] < 1:
        raise click.BadParameter("every number must be at least 1")
    return values


Command = TypeVar("Command", bound=Callable[..., Any])


def shared_options(command: Command) -> Command:
    """Options that every benchmark has."""
    for option in (
        click.option("--json", "out", type=click.Path(dir_okay=False, path_type=Path), help="Write all numbers, with their origin, to this file."),
        click.option("--quick", is_flag=True, help="Tiny sizes and one round: shows that the script works, measures nothing."),
        click.option("--threads", default=0, show_default="torch's own choice", help="Threads of torch."),
    ):
        command = option(command)
    return command
