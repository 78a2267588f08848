"""Where progress is shown: a live line on a terminal, plain lines elsewhere, and TensorBoard if asked."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from metasdf.errors import UsageError

PLAIN_SECONDS = 15.0
Report = Callable[[int, int], None]  # (done, total)


def duration(seconds: float) -> str:
    """1:02:03 or 2:03; a dash for what is not known."""
    if not 0 <= seconds < 1e7:
        return "-"
    minutes, s = divmod(round(seconds), 60)
    h, m = divmod(minutes, 60)
    return f"{h}:{m:02d}:{s:02d}" if h else f"{m}:{s:02d}"


@contextmanager
def reporter(progress: bool | Report, total: int, label: str) -> Iterator[Report]:
    """A bar where standard error is a terminal, a line per tenth where it is not, nothing for False, or the caller's own function."""
    if callable(progress):
        yield progress
    elif not progress:
        yield lambda done, total: None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("", total=total)
            yield lambda done, total: bar.update(task, completed=done)
    else:
        printed = 0

        def lines(done: int, total: int) -> None:
            nonlocal printed
            if done * 10 // total > printed:
                printed = done * 10 // total
                print(f"{label}: {done:,} of {total:,}", file=sys.stderr, flush=True)

        yield lines


class TrainingMonitor:
    """Shows a training: loss, validation errors, speed and time left."""

    def __init__(self, tensorboard: Path | None = None) -> None:
        self._tensorboard = tensorboard
        self._writer: Any = None
        self._summary_writer = _summary_writer() if tensorboard else None
        self._live = sys.stderr.isatty()
        self._last = 0.0
        self._validation = ""
        self._bar: Any = None

    def __enter__(self) -> TrainingMonitor:
        if self._live:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            self._bar = Progress(BarColumn(bar_width=24), TextColumn("{task.percentage:>3.0f}% {task.description}"), console=Console(stderr=True))
            self._task = self._bar.add_task("starting", total=1.0)
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()
        if self._writer:
            self._writer.close()

    def say(self, text: str) -> None:
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def step(self, row: dict[str, float]) -> None:
        if row["step"] % 10 == 0:
            self._write(row, "loss", "lr", "shapes_per_second")
        now = time.monotonic()
        if now - self._last < (0.5 if self._live else PLAIN_SECONDS):
            return
        self._last = now
        text = (f"step {row['step']:,.0f}  epoch {row['epoch']:.2f}  loss {row['loss']:.3e}{self._validation}  "
                f"{row['shapes_per_second']:.1f} shapes/s  {duration(row['elapsed'])} gone, {duration(row['eta'])} left")  # fmt: skip
        if self._bar:
            self._bar.update(self._task, completed=row["progress"], description=text)
        else:
            self.say(text)

    def validated(self, row: dict[str, float]) -> None:
        self._validation = f"  val MSE {row['val_mse']:.3e} MAE {row['val_mae']:.3e}"
        self.say(f"step {row['step']:,.0f}: validation MSE {row['val_mse']:.3e}, MAE {row['val_mae']:.3e} ({row['val_n']:.0f} shapes)")
        self._write(row, "val_mse", "val_mae")

    def _write(self, row: dict[str, float], *keys: str) -> None:
        if self._summary_writer is None:
            return
        if self._writer is None:  # opened late: it makes a folder, and a new run folder must be found empty
            self._writer = self._summary_writer(str(self._tensorboard))
        for key in keys:
            self._writer.add_scalar(key, row[key], int(row["step"]))


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError("--tensorboard needs the tensorboard package", cause="the extra is not installed",
                         fix="pip install 'metasdf[tensorboard]'") from error  # fmt: skip
    return SummaryWriter
