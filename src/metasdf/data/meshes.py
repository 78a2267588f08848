"""Meshes, procedural shapes or DeepSDF's samples -> stores of 3D signed distance functions (kind "mesh-sdf-3d").

Items are the shapes' files (see `data.shape`), called by a key of all that they depend on. So a finished shape is never made again: not after an
interruption, when the same command goes on; not with --force, when options or sources of other shapes have changed. While shapes are made they
collect in the hidden folder `.NAME.unfinished` beside the data set, each complete or absent; the data set itself appears at once, at the end.

Arrays, for n shapes in order of their names:
    frames     (n, 4) float64   centre and scale: field = (x - centre) * scale
    agreement  (n, 2) float64   of two independent sign methods, near the surface and all over the box; NaN where there was no mesh
`meta["shapes"]` has the facts of each; `meta["dropped"]` name, reason and fix of what was found and not kept: found = kept + dropped.
The bytes depend on sources, options and library versions only, never on the number of workers or machines.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metasdf.data.isolation import Engine, Failure, Fatal, Limits, run, usable_cores
from metasdf.data.origins import Origin, checksum, find_origins, key_of
from metasdf.data.review import review
from metasdf.data.shape import VERSION, Sampling, encode, read_facts
from metasdf.data.splits import Shares, SplitFiles, by_shares, check_shares
from metasdf.data.store import ITEMS, MANIFEST, Store, StoreWriter, find_existing, link_or_copy, sha256_file
from metasdf.errors import InputError, UsageError
from metasdf.geometry.io import write_whole
from metasdf.geometry.sign import SignMethod
from metasdf.progress import Report, reporter

KIND = "mesh-sdf-3d"
CONVENTION = "negative inside; field units: field = (x - centre) * scale, the middle of the box at 0, the farthest vertex at 1/1.03; domain [-1, 1]^3"
LOW = 0.98  # agreement near the surface below which a shape should be looked at


class Interrupted(KeyboardInterrupt):
    """Stopped by the user: what is done is kept."""

    def __init__(self, done: int, total: int) -> None:
        super().__init__(f"interrupted: {done:,} of {total:,} shapes are done and kept; the same command goes on from here")


class _Row(NamedTuple):
    """A finished shape: its file in the unfinished folder, or in a part to be merged."""

    file: Path
    sha256: str | None
    facts: dict[str, Any]


class _Task(NamedTuple):
    """A shape to be made: what a worker is sent."""

    origin: Origin
    checksum: str
    how: Sampling
    file: Path


def prepare_meshes(
    source: str | Path, out: str | Path, *, sampling: Sampling = Sampling(), signs: Mapping[str, SignMethod] | None = None,  # noqa: B008, frozen
    split: Shares = (80, 10, 10), split_files: SplitFiles | None = None, workers: int | None = None, limits: Limits = Limits(),  # noqa: B008
    engine: Engine = "local", shard: tuple[int, int] | None = None, limit: int | None = None, count: int | None = None, force: bool = False,
    progress: bool | Report = True, say: Callable[[str], None] = lambda text: None, made: Callable[[str, float], None] = lambda name, seconds: None,
) -> Store:  # fmt: skip
    """Every shape of `source` (see `origins.find_origins`) as a row of the store at `out`; an identical one is returned as it is.

    signs: a method for single shapes, by name. shard: (i, n), this call's part of the shapes, 1 <= i <= n; `merge` makes one of all parts.
    A shape that fails, crashes, or exceeds the limits is dropped, with the reason. say: gets one line for each of these, as it happens.
    made: gets the name of each shape that is made now, and how many seconds that took.

    Raises UsageError for a wrong request, InputError if no shape is left or the disk is full, Interrupted.
    """
    out, signs = Path(out), dict(signs or {})
    check_shares(split)
    found = find_origins(source, count=count, seed=sampling.seed)
    everything, missing = _chosen(found.found, split_files, limit)
    origins = everything if shard is None else _part(everything, *shard)
    if unknown := sorted(set(signs) - {origin.name for origin in found.found}):
        raise UsageError(f"--sign names {unknown[0]!r}, which is not among the shapes", where=source, fix="give its name as review.html has it")
    sums = {origin.name: checksum(origin) for origin in origins}
    request = {
        "origins": sums, "sampling": asdict(sampling), "signs": signs, "split": list(split) if split_files is None else split_files.request(),
        "shard": shard and list(shard), "of": names_digest(everything), "limits": list(limits), "version": VERSION,
    }  # fmt: skip
    if store := find_existing(out, kind=KIND, request=request, force=force):
        return store
    refused = found.dropped if shard is None or shard[0] == 1 else []
    dropped = [{"name": name, "reason": reason, "fix": "copy or unpack it again"} for name, reason in refused]
    with _unfinished(out) as folder:
        tasks = []
        for origin in origins:
            how = replace(sampling, sign=signs.get(origin.name, sampling.sign))
            tasks.append(_Task(origin, sums[origin.name], how, folder / f"{key_of(origin, sums[origin.name], how, version=VERSION)}.safetensors"))
        _take_over(out, tasks)
        _check_space(folder, tasks)
        rows, failed = _make(tasks, workers=workers or usable_cores(), limits=limits, engine=engine, progress=progress, say=say,
                             made=made)  # fmt: skip
        dropped += failed
        meta = {**found.about, "seed": sampling.seed, "shard": request["shard"], "missing": missing}
        _finish(out, rows, dropped, request=request, meta=meta, split_files=split_files, force=force, where=source)
    shutil.rmtree(folder, ignore_errors=True)
    return Store.open(out)


def merge(parts: Sequence[str | Path], out: str | Path, *, force: bool = False) -> Store:
    """One store of all parts that `shard` made; files are not copied on the same disk. Raises UsageError where parts are missing, or do not
    belong together."""
    stores = [Store.open(part) for part in parts]
    for store in stores:
        if store.kind != KIND or not store.request.get("shard"):
            raise UsageError("Not a part of a data set", where=store.path, cause="made without --shard", fix="merge what --shard 1/n to n/n made")
    first = stores[0].request
    numbers = sorted(store.request["shard"][0] for store in stores)
    if any(_alike(store.request) != _alike(first) for store in stores):
        raise UsageError("The parts were made with different options, or of different shapes", where=", ".join(map(str, parts)),
                         cause="files came or went between them", fix="prepare them again with the same ones")  # fmt: skip
    if numbers != list(range(1, first["shard"][1] + 1)):
        raise UsageError(f"There are {first['shard'][1]} parts, given are {', '.join(map(str, numbers))}", fix="name each part once")
    stores.sort(key=lambda store: store.request["shard"][0])
    limits = [max(values) for values in zip(*(store.request["limits"] for store in stores), strict=True)]
    request = {**stores[0].request, "shard": None, "limits": limits,
               "origins": dict(sorted((k, v) for store in stores for k, v in store.request["origins"].items()))}
    if existing := find_existing(out, kind=KIND, request=request, force=force):
        return existing
    rows = [_Row(store.item(k), store.checksum(k), facts) for store in stores for k, facts in enumerate(store.meta["shapes"])]
    rows.sort(key=lambda row: row.facts["name"])
    dropped = [entry for store in stores for entry in store.meta["dropped"]]
    split_files = SplitFiles.of_request(first["split"])
    _finish(Path(out), rows, dropped, request=request, meta={**stores[0].meta, "shard": None}, split_files=split_files, force=force, where=parts[0])
    return Store.open(out)


def _alike(request: dict[str, Any]) -> dict[str, Any]:
    """What all parts of a data set have in common. Some may have needed more time or memory."""
    return {**request, "origins": None, "limits": None, "shard": request["shard"][1]}


def names_digest(origins: Sequence[Origin]) -> str:
    """Of the whole that parts belong to."""
    return hashlib.sha256(json.dumps([origin.name for origin in origins]).encode()).hexdigest()


def _part(origins: list[Origin], number: int, of: int) -> list[Origin]:
    """Every n-th shape: none, where there are fewer shapes than parts."""
    if not 1 <= number <= of:
        raise UsageError("A shard is i/n with 1 <= i <= n", where=f"shard={number}/{of}", fix="count from 1")
    return origins[number - 1 :: of]


def _chosen(found: list[Origin], split_files: SplitFiles | None, limit: int | None) -> tuple[list[Origin], list[str]]:
    """The shapes to be made, by name, and what split files name that is not there."""
    origins, missing = sorted(found, key=lambda origin: origin.name), []
    if split_files is not None:
        names = {origin.name for origin in origins}
        origins = [origin for origin in origins if split_files.split_of(origin.name)]
        missing = split_files.missing(names)
        if not origins:
            raise UsageError("None of the shapes is named in the split files", where=f"there is {sorted(names)[0]}, named is {(*missing, 'none')[0]}",
                             cause="files of another data set", fix="names are class/id, as the folders are called")  # fmt: skip
    return origins[:limit], missing


@contextmanager
def _unfinished(out: Path) -> Iterator[Path]:
    """The folder where shapes collect, for this process alone. It stays when the work ends early."""
    folder = out.absolute().parent / f".{out.absolute().name}.unfinished"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise InputError(f"The data set cannot be written: {error.strerror}", where=folder, cause="a full disk, or no permission to write there",
                         fix="free some space, or choose another folder with -o") from error  # fmt: skip
    with lock:
        _lock(lock, folder)
        yield folder


def _lock(file: Any, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: two commands would make shapes twice, nothing worse
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise UsageError("The same data set is being prepared by another process", where=folder, fix="wait for it, or end it") from error


def _take_over(out: Path, tasks: Sequence[_Task]) -> None:
    """What a data set that will be replaced has already, if it is whole."""
    if not (out / MANIFEST).is_file() or not (out / ITEMS).is_dir():
        return
    try:
        store = Store.open(out)
    except InputError:  # damaged: all shapes are made again
        return
    there = {store.item(row).name: row for row in range(len(store))}
    for task in tasks:
        row = there.get(task.file.name)
        if row is not None and not task.file.exists() and sha256_file(store.item(row)) == store.checksum(row):
            link_or_copy(store.item(row), task.file)


def _check_space(folder: Path, tasks: Sequence[_Task]) -> None:
    left = [task.how for task in tasks if not task.file.exists()]
    needed = sum(16 * how.samples + 24 * how.surface + 170_000 for how in left)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(f"{len(left):,} shapes need about {needed / 1e9:,.1f} GB, {free / 1e9:,.1f} GB are free", where=folder.parent,
                         fix="fewer --samples, a --shard of the shapes, or another disk with -o")  # fmt: skip


def _make(tasks: Sequence[_Task], *, workers: int, limits: Limits, engine: Engine, progress: bool | Report,
          say: Callable[[str], None], made: Callable[[str, float], None]) -> tuple[list[_Row], list[dict[str, str]]]:  # fmt: skip
    """Make what is not there yet. Rows in the order of the tasks, and what was dropped."""
    rows: dict[str, _Row] = {}
    dropped: list[dict[str, str]] = []
    left = []
    for task in tasks:
        if (row := _finished(task)) is not None:
            rows[task.origin.name] = row
        else:
            left.append(task)
    try:
        with reporter(progress, len(tasks), "shapes") as report:
            if rows:
                say(f"{len(rows):,} of {len(tasks):,} shapes are there already")
            for number, result in run(_draw, [tuple(task) for task in left], workers=min(workers, len(left) or 1), limits=limits, engine=engine):
                name = left[number].origin.name
                if isinstance(result, Failure):
                    dropped.append({"name": name, "reason": result.reason, "fix": result.fix})
                    say(f"dropped {name}: {result.reason}")
                else:
                    sha256, facts, seconds = result
                    rows[name] = _Row(left[number].file, sha256, facts)
                    made(name, seconds)
                report(len(rows) + len(dropped), len(tasks))
    except Fatal as fatal:
        raise fatal.error from fatal
    except KeyboardInterrupt as error:
        raise Interrupted(len(rows), len(tasks)) from error
    return [rows[task.origin.name] for task in tasks if task.origin.name in rows], dropped


def _finished(task: _Task) -> _Row | None:
    """A shape made earlier; a file that cannot be read is made again."""
    try:
        return _Row(task.file, None, read_facts(task.file)) if task.file.exists() else None
    except InputError:
        task.file.unlink()
        return None


def _draw(origin: Origin, given: str, how: Sampling, file: Path) -> tuple[str, dict[str, Any], float]:
    """In a worker: make a shape and its file. Its checksum, the facts and the seconds go back. A full disk is no fault of the shape's."""
    started = time.perf_counter()
    shape = origin.draw(how)
    if checksum(origin) != given:
        raise InputError("The file has changed while it was read", cause="another program writes it",
                         fix="the same command with --force, when it is done")  # fmt: skip
    data = encode(shape)
    try:
        write_whole(file, data)
    except InputError as error:
        raise Fatal(error) from error
    facts = json.loads(json.dumps(shape.facts, sort_keys=True))  # as they will be read
    return hashlib.sha256(data).hexdigest(), facts, time.perf_counter() - started


def _finish(out: Path, rows: Sequence[_Row], dropped: list[dict[str, str]], *, request: dict[str, Any], meta: dict[str, Any],
            split_files: SplitFiles | None, force: bool, where: object) -> None:  # fmt: skip
    if not rows and not request["shard"]:  # a part may be empty: the others are not
        name, reason, fix = dropped[0].values()
        raise InputError(f"None of the {len(dropped):,} shapes can be used", where=where, cause=f"{name}: {reason}", fix=fix)
    dropped = sorted(dropped, key=lambda entry: entry["name"])
    facts = [row.facts for row in rows]
    names = [each["name"] for each in facts]
    meta = {**meta, "convention": CONVENTION, "sampling": request["sampling"], "found": len(rows) + len(dropped), "kept": len(rows),
            "dropped": dropped, "shapes": facts}  # fmt: skip
    splits = split_files.rows(names) if split_files is not None else by_shares(
        names, tuple(request["split"]), seed=meta["seed"], groups=_groups([each["category"] for each in facts]))  # fmt: skip
    with StoreWriter(out, kind=KIND, request=request, meta=meta, force=force) as writer:
        writer.add("frames", np.array([[*each["centre"], each["scale"]] for each in facts]).reshape(-1, 4))
        writer.add("agreement", np.array([[each.get("agreement", np.nan), each.get("agreement_uniform", np.nan)] for each in facts]).reshape(-1, 2))
        writer.splits = dict(splits)
        for row in rows:
            writer.link(row.file, sha256=row.sha256)
        writer.page(review([row.file for row in rows], meta, low=LOW, splits={name: len(part) for name, part in splits.items()}))


def _groups(categories: Sequence[str]) -> list[str]:
    """What is split by itself: categories, and all those together that are too small to have validation and test shapes (a folder for each shape)."""
    counts = Counter(categories)
    return [category if counts[category] >= 3 else "" for category in categories]
