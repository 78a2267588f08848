"""Meshes, procedural shapes or DeepSDF's samples -> stores of 3D signed distance functions (kind "mesh-sdf-3d").

Items are the shapes' files (see `data.shape`), called by a key of all that they depend on. So a finished shape is never made again: not after an
interruption, when the same command goes on; not with --force, when options or sources of other shapes have changed. Until all are made they are in
the folder of `data.unfinished`; the data set itself appears at once, at the end.

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metasdf.data.families import families
from metasdf.data.isolation import Engine, Failure, Fatal, Limits, run
from metasdf.data.origins import Dice, MeshFile, Origin, Stretched, checksum, find_origins, key_of
from metasdf.data.review import review
from metasdf.data.shape import VERSION, Sampling, encode
from metasdf.data.splits import Shares, SplitFiles, by_shares, check_shares
from metasdf.data.store import MESHES, Store, StoreWriter, find_existing
from metasdf.data.unfinished import Row, Task, check_space, failed_before, finished, remember, take_over, unfinished
from metasdf.errors import InputError, MetaSDFError, UsageError
from metasdf.files import write_whole
from metasdf.geometry.sign import SignMethod
from metasdf.progress import Report, reporter

Splits = dict[str, NDArray[np.int64]]
LOW = 0.98  # agreement near the surface below which a shape should be looked at


class Interrupted(KeyboardInterrupt):
    """Stopped by the user: what is done is kept."""

    def __init__(self, done: int, total: int) -> None:
        super().__init__(f"interrupted: {done:,} of {total:,} shapes are done and kept; the same command goes on from here")


def prepare_meshes(
    source: str | Path, out: str | Path, *, sampling: Sampling = Sampling(), signs: Mapping[str, SignMethod] | None = None,  # noqa: B008, frozen
    split: Shares = (80, 10, 10), split_files: SplitFiles | None = None, workers: int | None = None, limits: Limits = Limits(),  # noqa: B008
    engine: Engine = "local", shard: tuple[int, int] | None = None, limit: int | None = None, count: int | None = None, stretch: int = 0,
    force: bool = False, retry: bool = False, progress: bool | Report = True, say: Callable[[str], None] = lambda text: None,
    made: Callable[[str, float], None] = lambda name, seconds: None,
) -> Store:  # fmt: skip
    """Every shape of `source` (see `origins.find_origins`) as a row of the store at `out`; an identical one is returned as it is.

    sampling: of meshes; samples in DeepSDF's layout are taken over as they are, and only its seed, of their order and the split, may be given.
    signs: a method for single shapes, by name. shard: (i, n), this call's part of the shapes, 1 <= i <= n; `merge` makes one of all parts.
    A shape that fails, crashes, or exceeds the limits is dropped, with the reason. say: gets one line for each of these, as it happens.
    stretch: so many copies of each training shape beside it, see `origins.Stretched`; val and test stay as they are.
    retry: try those again that failed earlier under the same limits, before an interruption or in the data set that is there.
    made: gets the name of each shape that is made now, and how many seconds that took.

    Raises UsageError for a wrong request, InputError if no shape is left or they need too much space, Interrupted, and as `files.write_whole`.
    """
    out, signs = Path(out), dict(signs or {})
    check_shares(split)
    found = find_origins(source, count=count, seed=sampling.seed)
    everything, missing = _chosen(found.found, split_files, limit)
    origins = everything if shard is None else _part(everything, *shard)
    if found.sampled and (signs or sampling != Sampling(seed=sampling.seed)):
        raise UsageError("Samples in DeepSDF's layout are taken over as they are", where=source, cause="an option says how meshes are sampled",
                         fix="leave all options of sampling out, but the seed")  # fmt: skip
    drawn = {"seed": sampling.seed} if found.sampled else asdict(sampling)  # what holds of these shapes
    if stretch and (found.sampled or shard):
        raise UsageError("There are no stretched copies of " + ("samples, whose meshes are not there" if found.sampled else "a part of a data set"),
                         where=source, cause="" if found.sampled else "what is for training is known when all parts are merged",
                         fix="leave --stretch out" if found.sampled else "leave --shard or --stretch out")  # fmt: skip
    if unknown := sorted(set(signs) - {origin.name for origin in found.found}):
        raise UsageError(f"--sign names {unknown[0]!r}, which is not among the shapes", where=source, fix="give its name as review.html has it")
    given = {origin.name: checksum(origin) for origin in origins}
    request = {
        "origins": given, "sampling": drawn, "signs": signs, "split": list(split) if split_files is None else split_files.request(),
        "shard": shard and list(shard), "of": names_digest(everything), "limits": list(limits), "version": VERSION,
    } | ({"stretch": stretch} if stretch else {})  # fmt: skip
    if store := find_existing(out, kind=MESHES, request=request, force=force):
        if not (retry and store.meta["dropped"]):
            return store
        force = True
    refused = found.dropped if shard is None or shard[0] == 1 else []
    dropped = [{"name": name, "reason": reason, "fix": "copy or unpack it again"} for name, reason in refused]
    with unfinished(out) as folder:

        def make(wanted: Sequence[Origin], sums: Sequence[str]) -> tuple[list[Row], list[dict[str, str]]]:
            methods = [signs.get(origin.origin.name if isinstance(origin, Stretched) else origin.name, sampling.sign) for origin in wanted]
            tasks = [_task(origin, digest, replace(sampling, sign=sign), folder) for origin, digest, sign in zip(wanted, sums, methods, strict=True)]
            known = take_over(out, tasks)
            if not found.sampled:
                check_space(folder, tasks)
            return _make(tasks, sums=known, workers=workers, limits=limits, engine=engine, retry=retry, progress=progress, say=say, made=made)

        rows, failed = make(origins, list(given.values()))
        dropped += failed
        if not rows and shard is None:
            shutil.rmtree(folder, ignore_errors=True)
        splits = _splits(rows, dropped, request=request, seed=sampling.seed, split_files=split_files, where=source)
        if stretch:
            learned = {rows[k].facts["name"] for k in splits["train"]}
            copies = [Stretched(origin, number, sampling.seed) for origin in origins if isinstance(origin, MeshFile | Dice)
                      and origin.name in learned for number in range(1, stretch + 1)]  # fmt: skip
            if taken := {copy.name for copy in copies} & set(given):
                raise UsageError(f"A copy would be called {min(taken)}, as one of the shapes is", where=source, fix="give that file another name")
            more, failed = make(copies, [checksum(copy) for copy in copies])
            dropped += failed
            rows, splits = _beside(rows, splits, more)
        meta = {**found.about, "seed": sampling.seed, "shard": request["shard"], "missing": missing}
        _finish(out, rows, dropped, splits=splits, request=request, meta=meta, force=force)
    shutil.rmtree(folder, ignore_errors=True)
    return Store.open(out)


def merge(parts: Sequence[str | Path], out: str | Path, *, force: bool = False) -> Store:
    """One store of all parts that `shard` made; or of several whole data sets, whose shapes then keep their splits. Files are not copied on the
    same disk. Raises UsageError where parts are missing, or do not belong together."""
    stores = [Store.open(part) for part in parts]
    sharded = [bool(store.request.get("shard")) for store in stores]
    for store in stores:
        if store.kind != MESHES or any(sharded) != bool(store.request.get("shard")):
            raise UsageError("Not a part of a data set" if any(sharded) else f"This data set holds {store.kind}", where=store.path,
                             cause="made without --shard" if any(sharded) else "another kind of shapes",
                             fix="merge what --shard 1/n to n/n made, or whole data sets of 3D shapes")  # fmt: skip
    if not any(sharded):
        return _unite(stores, Path(out), force=force)
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
    if existing := find_existing(out, kind=MESHES, request=request, force=force):
        return existing
    rows = [Row(store.item(k), store.checksum(k), facts) for store in stores for k, facts in enumerate(store.meta["shapes"])]
    rows.sort(key=lambda row: row.facts["name"])
    dropped = [entry for store in stores for entry in store.meta["dropped"]]
    splits = _splits(rows, dropped, request=request, seed=stores[0].meta["seed"], split_files=SplitFiles.of_request(first["split"]), where=parts[0])
    _finish(Path(out), rows, dropped, splits=splits, request=request, meta={**stores[0].meta, "shard": None}, force=force)
    return Store.open(out)


def _unite(stores: Sequence[Store], out: Path, *, force: bool) -> Store:
    """Whole data sets as one: procedural shapes beside real ones, say."""
    request = {"united": [store.fingerprint for store in stores]}
    if existing := find_existing(out, kind=MESHES, request=request, force=force):
        return existing
    rows = [(facts["name"], number, row) for number, store in enumerate(stores) for row, facts in enumerate(store.meta["shapes"])]
    if repeated := [name for name, count in Counter(name for name, *_ in rows).items() if count > 1]:
        raise UsageError(f"Two data sets have a shape called {repeated[0]}", where=", ".join(str(store.path) for store in stores),
                         cause="one of them is part of another, or procedural shapes of the same seed", fix="leave one of them out")  # fmt: skip
    rows.sort()
    place = {(number, row): at for at, (_, number, row) in enumerate(rows)}
    parts = [{key: store.meta.get(key) for key in ("source", "licence", "sampling", "convention")} for store in stores]
    meta = {
        "source": " and ".join(str(part["source"]) for part in parts), "licence": "; ".join(sorted({str(part["licence"]) for part in parts})),
        "convention": parts[0]["convention"], "parts": parts, "found": sum(store.meta["found"] for store in stores), "kept": len(rows),
        "dropped": [entry for store in stores for entry in store.meta["dropped"]], "sampling": parts[0]["sampling"], "missing": [],
        "shapes": [stores[number].meta["shapes"][row] for _, number, row in rows],
    }  # fmt: skip
    splits = {
        name: np.sort([place[number, int(row)] for number, store in enumerate(stores) for row in store.splits.get(name, ())]).astype(np.int64)
        for name in dict.fromkeys(name for store in stores for name in store.splits)
    }
    with StoreWriter(out, kind=MESHES, request=request, meta=meta, force=force) as writer:
        for name in ("frames", "agreement"):
            writer.add(name, np.stack([stores[number].arrays[name][row] for _, number, row in rows]))
        writer.splits = dict(splits)
        files = [stores[number].item(row) for _, number, row in rows]
        for file, (_, number, row) in zip(files, rows, strict=True):
            writer.link(file, sha256=stores[number].checksum(row))
        writer.page(review(files, meta, low=LOW, splits={name: len(part) for name, part in splits.items()}))
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


def _task(origin: Origin, given: str, how: Sampling, folder: Path) -> Task:
    return Task(origin, given, how, folder / f"{key_of(origin, given, how, version=VERSION)}.safetensors")


def _make(tasks: Sequence[Task], *, sums: Mapping[Path, str], workers: int | None, limits: Limits, engine: Engine, retry: bool,
          progress: bool | Report, say: Callable[[str], None], made: Callable[[str, float], None],
          ) -> tuple[list[Row], list[dict[str, str]]]:  # fmt: skip
    """Make what is not there yet. Rows in the order of the tasks, and what was dropped. sums: SHA-256 of files, where known."""
    rows: dict[str, Row] = {}
    dropped: list[dict[str, str]] = []
    left = []

    def drop(task: Task, failure: Failure, when: str = "") -> None:
        dropped.append({"name": task.origin.name, "reason": failure.reason, "fix": failure.fix})
        say(f"dropped {task.origin.name}{when}: {failure.reason}")

    for task in tasks:
        if (row := finished(task, sums.get(task.file))) is not None:
            rows[task.origin.name] = row
        elif not retry and (failure := failed_before(task, limits)) is not None:
            drop(task, failure, " earlier (--retry tries again)")
        else:
            left.append(task)
    if rows:
        say(f"{len(rows):,} of {len(tasks):,} shapes are there already")
    try:
        with reporter(progress, len(tasks), "shapes") as report:
            for number, result in run(_draw, [tuple(task) for task in left], workers=workers, limits=limits, engine=engine):
                task = left[number]
                if isinstance(result, Failure):
                    remember(task, result, limits)
                    drop(task, result)
                else:
                    sha256, facts, seconds = result
                    rows[task.origin.name] = Row(task.file, sha256, facts)
                    made(task.origin.name, seconds)
                report(len(rows) + len(dropped), len(tasks))
    except Fatal as fatal:
        raise fatal.error from fatal
    except KeyboardInterrupt as error:
        raise Interrupted(len(rows), len(tasks)) from error
    return [rows[task.origin.name] for task in tasks if task.origin.name in rows], dropped


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
    except MetaSDFError as error:
        raise Fatal(error) from error
    facts = json.loads(json.dumps(shape.facts, sort_keys=True))  # as they will be read
    return hashlib.sha256(data).hexdigest(), facts, time.perf_counter() - started


def _splits(rows: Sequence[Row], dropped: Sequence[dict[str, str]], *, request: dict[str, Any], seed: int, split_files: SplitFiles | None,
            where: object) -> Splits:  # fmt: skip
    """Raises InputError where no shape is left."""
    if not rows and not request["shard"]:  # a part may be empty: the others are not
        name, reason, fix = dropped[0].values()
        raise InputError(f"None of the {len(dropped):,} shapes can be used", where=where, cause=f"{name}: {reason}", fix=fix)
    names = [row.facts["name"] for row in rows]
    if split_files is not None:
        return split_files.rows(names)
    return by_shares(names, tuple(request["split"]), seed=seed, groups=_groups([row.facts["category"] for row in rows]),
                     families=families([row.file for row in rows]))  # fmt: skip


def _beside(rows: Sequence[Row], splits: Splits, copies: Sequence[Row]) -> tuple[list[Row], Splits]:
    """Copies of training shapes among the others, all in the order of their names."""
    of = {rows[k].facts["name"]: split for split, chosen in splits.items() for k in chosen}
    together = sorted((*rows, *copies), key=lambda row: row.facts["name"])
    found = [of.get(row.facts["name"], "train") for row in together]
    return together, {split: np.array([k for k, each in enumerate(found) if each == split], np.int64) for split in splits}


def _finish(out: Path, rows: Sequence[Row], dropped: list[dict[str, str]], *, splits: Splits, request: dict[str, Any], meta: dict[str, Any],
            force: bool) -> None:  # fmt: skip
    dropped = sorted(dropped, key=lambda entry: entry["name"])
    facts = [row.facts for row in rows]
    meta = {**meta, "sampling": request["sampling"], "found": len(rows) + len(dropped), "kept": len(rows),
            "dropped": dropped, "shapes": facts}  # fmt: skip
    with StoreWriter(out, kind=MESHES, request=request, meta=meta, force=force) as writer:
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
