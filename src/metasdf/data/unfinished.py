"""Where the shapes of a data set collect until all are made: the hidden folder `.NAME.unfinished` beside it, each shape complete or absent.

Files are called by a key of all that a shape depends on: KEY.safetensors is a shape, KEY.failed says why there is none, and under which limits. The
folder outlives an interruption, or an error that ends the work; it goes when the data set is there, or nothing was made.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from metasdf.data.isolation import Failure, Limits
from metasdf.data.origins import UNREADABLE, Origin
from metasdf.data.shape import Sampling, read_facts
from metasdf.data.store import ITEMS, MANIFEST, Store, link_or_copy, sha256_file
from metasdf.errors import InputError, UsageError
from metasdf.files import write_whole

LOCK = "lock"


class Task(NamedTuple):
    """A shape to be made: what a worker is sent."""

    origin: Origin
    checksum: str
    how: Sampling
    file: Path


class Row(NamedTuple):
    """A finished shape: its file in the unfinished folder, or in a part to be merged; its SHA-256, if known."""

    file: Path
    sha256: str | None
    facts: dict[str, Any]


@contextmanager
def unfinished(out: Path) -> Iterator[Path]:
    """The folder, for this process alone."""
    folder = out.absolute().parent / f".{out.absolute().name}.unfinished"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("w")
    except OSError as error:
        raise InputError(f"The data set cannot be written: {error.strerror}", where=folder, cause="a full disk, or no permission to write there",
                         fix="free some space, or choose another folder with -o") from error  # fmt: skip
    with lock:
        _lock(lock, folder)
        try:
            yield folder
        finally:
            if all(file.name == LOCK for file in folder.glob("*")):
                shutil.rmtree(folder, ignore_errors=True)


def _lock(file: Any, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: two commands would make shapes twice, nothing worse
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise UsageError("The same data set is being prepared by another process", where=folder, fix="wait for it, or end it") from error


def take_over(out: Path, tasks: Sequence[Task]) -> dict[Path, str]:
    """What a data set that will be replaced has already, if it is whole. SHA-256 of the files that are there now."""
    if not (out / MANIFEST).is_file() or not (out / ITEMS).is_dir():
        return {}
    try:
        store = Store.open(out)
    except InputError:  # damaged: all shapes are made again
        return {}
    there = {store.item(row).name: row for row in range(len(store))}
    sums = {}
    for task in tasks:
        row = there.get(task.file.name)
        if row is not None and not task.file.exists() and sha256_file(store.item(row)) == store.checksum(row):
            link_or_copy(store.item(row), task.file)
            sums[task.file] = store.checksum(row)
    return sums


def check_space(folder: Path, tasks: Sequence[Task]) -> None:
    left = [task.how for task in tasks if not task.file.exists()]
    needed = sum(16 * how.samples + 24 * how.surface + 170_000 for how in left)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(f"{len(left):,} shapes need about {needed / 1e9:,.1f} GB, {free / 1e9:,.1f} GB are free", where=folder.parent,
                         fix="fewer --samples, a --shard of the shapes, or another disk with -o")  # fmt: skip


def finished(task: Task, sha256: str | None) -> Row | None:
    """A shape made earlier; a file that cannot be read is made again."""
    try:
        return Row(task.file, sha256, read_facts(task.file)) if task.file.exists() else None
    except InputError:
        task.file.unlink()
        return None


def remember(task: Task, failure: Failure, limits: Limits) -> None:
    """So that what took its whole time once does not take it again. Raises as `write_whole`."""
    if failure.lasting and task.checksum != UNREADABLE:  # an unreadable file may be another one next time
        write_whole(_note(task), json.dumps([failure.reason, failure.fix, *limits]).encode())


def failed_before(task: Task, limits: Limits) -> Failure | None:
    """How a shape failed under the same limits."""
    try:
        reason, fix, *then = json.loads(_note(task).read_bytes())
    except (OSError, ValueError, TypeError):
        return None
    return Failure(str(reason), str(fix)) if then == list(limits) else None


def _note(task: Task) -> Path:
    return task.file.with_suffix(".failed")
