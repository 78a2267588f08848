"""Sources -> stores of 2D signed distance functions (kind "image-sdf-2d").

Arrays, for n images of R x R:
    sdf              (n, R, R) float32    `geometry.image.sdf_from_mask`: image sides, negative inside
    contour_points   (total, 2) float32   zero-level vertices of all images in field coordinates, one image after the other
    contour_offsets  (n + 1,) int64       image k owns contour_points[contour_offsets[k] : contour_offsets[k + 1]]
    labels           (n,) int64           class, or -1 where there is none
and the splits train, val and test. The bytes depend on the sources, the parameters and the library versions (kept in `meta`), never on the
number of workers.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
import scipy
from numpy.typing import NDArray

from metasdf.data.digits import NAMES, Part, digit_parts, joined_splits
from metasdf.data.isolation import main_can_be_imported, usable_cores
from metasdf.data.mnist import CREDIT, LICENCE, download_mnist, holds_mnist, load_slice, read_mnist
from metasdf.data.splits import by_shares, check_shares
from metasdf.data.store import IMAGES, Store, StoreWriter, find_existing, sha256_file
from metasdf.errors import InputError, UsageError
from metasdf.geometry.image import IMAGE_SUFFIXES, Foreground, contour_points, mask_from_image, read_silhouette, sdf_from_mask
from metasdf.progress import Report, reporter

SLICE_NOTE = "test digits; for demos and smoke tests only, not comparable"
THRESHOLD = 0.5
CHUNK_DIGITS, CHUNK_FILES = 500, 32


class _Rows(NamedTuple):
    """What one chunk of images becomes. `kept` are positions inside the chunk; `dropped` are (position, reason)."""

    sdf: NDArray[np.float32]
    points: NDArray[np.float32]
    counts: NDArray[np.int64]
    kept: list[int]
    dropped: list[tuple[int, str]]


def prepare(source: str | Path | None, out: str | Path, *, resolution: int = 64, workers: int | None = None, seed: int = 0,
            val: int | None = None, contours: bool = True, force: bool = False, limit: int | None = None,
            allow_unofficial: bool = False, progress: bool | Report = True) -> Store:
    """Prepare whatever `source` is, with the defaults of its kind.

    "mnist" or None: MNIST, downloaded; "mnist-rotated" and the others of `digits.NAMES` likewise. "mnist-slice": the 100 shipped digits. An
    archive, or a folder that holds IDX files: MNIST from there. Any other folder: silhouette images (see `prepare_images`, which has more
    options). A file or folder that happens to be called mnist is meant by ./mnist.
    """
    if source is not None and str(source) == "mnist-slice":
        return prepare_slice(out, resolution=resolution, contours=contours, force=force, progress=progress)
    if source is None or str(source) in NAMES:
        return prepare_mnist(None, out, name=str(source or "mnist"), resolution=resolution, workers=workers, seed=seed, val=val, contours=contours,
                             force=force, limit=limit, progress=progress)
    path = Path(source)
    if not path.exists():
        raise UsageError("The source does not exist", where=path, cause="a wrong path", fix="pass mnist, mnist-slice, a folder or an archive")
    if path.is_file() or holds_mnist(path):
        return prepare_mnist(path, out, resolution=resolution, workers=workers, seed=seed, val=val, contours=contours, force=force, limit=limit,
                             allow_unofficial=allow_unofficial, progress=progress)
    if val is not None:
        raise UsageError("val is for MNIST; a folder of images is split by percentages", where=path, fix="use split=(80, 10, 10)")
    return prepare_images(path, out, resolution=resolution, workers=workers, seed=seed, contours=contours, force=force, limit=limit,
                          progress=progress)


def prepare_mnist(source: str | Path | None, out: str | Path, *, name: str = "mnist", resolution: int = 64, workers: int | None = None,
                  seed: int = 0, val: int | None = None, contours: bool = True, force: bool = False, limit: int | None = None,
                  count: int | None = None, allow_unofficial: bool = False, progress: bool | Report = True) -> Store:
    """MNIST digits as SDFs (supplement, section 2.2.1), or a data set made of them: `name`, `count`, `val`, `limit` and `seed` as in
    `digits.digit_parts`. Rows of "mnist" are the training images in official order, then the test images; of all, see `meta["rows"]`.

    `source` None downloads. An identical store at `out` is returned as it is. A blank image is an error, but in an unofficial source it is
    dropped, with its name and the reason in `meta["dropped"]`.
    """
    _check_counts(workers=workers, val=val, limit=limit, count=count)
    official = read_mnist(download_mnist() if source is None else source, allow_unofficial=allow_unofficial)
    parts = digit_parts(name, official, resolution=resolution, seed=seed, val=val, limit=limit, count=count)
    val = len(joined_splits(parts)["val"])
    request = {"source": {key: hashlib.sha256(array.tobytes()).hexdigest() for key, array in official._asdict().items()},
               "official": not allow_unofficial, "resolution": resolution, "threshold": THRESHOLD, "contours": contours, "seed": seed, "val": val,
               "limit": limit} | ({"count": count} if count is not None else {}) | ({"name": name} if name != "mnist" else {})
    if store := find_existing(out, kind=IMAGES, request=request, force=force):
        return store
    title = "MNIST" if name == "mnist" else name
    meta = {"source": title if not allow_unofficial else f"{title} of IDX files in MNIST's form (md5 not checked)",
            "credit": CREDIT if not allow_unofficial else "", "licence": LICENCE if not allow_unofficial else "",
            "val": val, "seed": seed, "limit": limit, "count": count}
    return _write_digits(parts, out, request=request, meta=meta, resolution=resolution, contours=contours, workers=workers, force=force,
                         progress=progress, drop=allow_unofficial)


def prepare_slice(out: str | Path, *, resolution: int = 64, contours: bool = True, force: bool = False,
                  progress: bool | Report = True) -> Store:
    """The 100 shipped digits: six of each class to train, two to validate, two to test. They are *test* digits: numbers from this store are
    for demos and smoke tests only, and comparable with nothing; `meta["comparable"]` is False.
    """
    images, labels, indices = load_slice()
    request = {"source": {"slice": hashlib.sha256(images.tobytes()).hexdigest()}, "resolution": resolution, "threshold": THRESHOLD,
               "contours": contours}
    if store := find_existing(out, kind=IMAGES, request=request, force=force):
        return store
    rank = np.arange(100) % 10  # position inside the class: rows are sorted by class
    splits = {"train": np.flatnonzero(rank < 6), "val": np.flatnonzero((rank >= 6) & (rank < 8)), "test": np.flatnonzero(rank >= 8)}
    meta = {"source": "MNIST slice", "credit": CREDIT, "licence": LICENCE, "note": SLICE_NOTE, "comparable": False,
            "test_indices": indices.tolist()}
    return _write_digits([Part("slice", images, labels, splits)], out, request=request, meta=meta, resolution=resolution, contours=contours,
                         workers=1, force=force, progress=progress)


def prepare_images(folder: str | Path, out: str | Path, *, resolution: int = 64, workers: int | None = None, seed: int = 0,
                   split: tuple[float, float, float] = (80, 10, 10), foreground: Foreground = "auto", contours: bool = True,
                   force: bool = False, limit: int | None = None, progress: bool | Report = True) -> Store:
    """A folder of silhouettes (PNG, JPEG, BMP; searched recursively, sorted by name) as SDFs.

    An image that cannot be used is dropped, and its name and the reason are kept in `meta["dropped"]`; `meta["found"]` is always kept plus
    dropped. Names of the kept ones are in `meta["names"]`. `split` gives the shares of train, val and test; which image goes where depends
    on `seed` and the names. Labels are -1. Raises InputError if there are no images or none can be used.
    """
    folder = Path(folder)
    _check_counts(workers=workers, limit=limit)
    check_shares(split)
    if not folder.is_dir():
        raise UsageError("The image folder does not exist", where=folder, cause="a wrong path, or a file", fix="pass a folder of images")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())[:limit]
    if not paths:
        raise InputError("There are no images in the folder", where=folder, cause=f"no file ends in {', '.join(IMAGE_SUFFIXES)}",
                         fix="pass a folder of PNG, JPEG or BMP silhouettes")
    names = [p.relative_to(folder).as_posix() for p in paths]
    request = {"source": {name: _sha256_or_unreadable(p) for name, p in zip(names, paths, strict=True)}, "resolution": resolution,
               "threshold": THRESHOLD, "contours": contours, "seed": seed, "split": list(split), "foreground": foreground}
    if store := find_existing(out, kind=IMAGES, request=request, force=force):
        return store
    meta: dict[str, Any] = {"source": "images", "licence": "as the images", "seed": seed, "split": list(split), "foreground": foreground,
                            "found": len(paths), **_common_meta(resolution, contours)}
    kept: list[str] = []
    dropped: list[dict[str, str]] = []
    with StoreWriter(out, kind=IMAGES, request=request, meta=meta, force=force) as writer:
        sinks = _Sinks(writer, resolution)
        starts = range(0, len(paths), CHUNK_FILES)
        jobs = [(_rows_from_files, paths[i : i + CHUNK_FILES], resolution, foreground, contours) for i in starts]
        for start, rows in zip(starts, _run(jobs, len(starts), workers, progress, total=len(paths)), strict=True):
            sinks.append(rows)
            kept += [names[start + k] for k in rows.kept]
            dropped += [{"name": names[start + k], "reason": reason} for k, reason in rows.dropped]
        if not kept:
            raise InputError(f"None of the {len(paths)} images can be used", where=folder, cause=f"{dropped[0]['name']}: {dropped[0]['reason']}",
                             fix="use images that show a shape on a plain background")
        sinks.close(np.full(len(kept), -1))
        meta.update(kept=len(kept), dropped_count=len(dropped), dropped=dropped, names=kept)
        writer.splits = dict(by_shares(kept, split, seed=seed))
    return Store.open(out)


def _write_digits(parts: Sequence[Part], out: str | Path, *, request: dict[str, Any], meta: dict[str, Any], resolution: int, contours: bool,
                  workers: int | None, force: bool, progress: bool | Report, drop: bool = False) -> Store:
    """Rows: the images of all parts, one after the other, less what is dropped."""
    firsts = np.cumsum([0, *(len(part.images) for part in parts)])
    chunks = [(part, first, i) for part, first in zip(parts, firsts, strict=False) for i in range(0, len(part.images), CHUNK_DIGITS)]
    jobs = ((_rows_from_digits, part.images[i : i + CHUNK_DIGITS], first + i, resolution, contours, drop) for part, first, i in chunks)
    meta = {**meta, **_common_meta(resolution, contours)}
    kept: list[int] = []
    dropped: list[dict[str, str]] = []
    with StoreWriter(out, kind=IMAGES, request=request, meta=meta, force=force) as writer:
        sinks = _Sinks(writer, resolution)
        for (_, first, i), rows in zip(chunks, _run(jobs, len(chunks), workers, progress, total=int(firsts[-1])), strict=True):
            sinks.append(rows)
            kept += [int(first) + i + k for k in rows.kept]
            dropped += [{"name": f"image {first + i + k}", "reason": reason} for k, reason in rows.dropped]
        sinks.close(np.concatenate([part.labels for part in parts])[kept])
        bounds = np.searchsorted(kept, firsts).tolist()
        meta["rows"] = {part.name: [start, end] for part, start, end in zip(parts, bounds, bounds[1:], strict=False)}
        if drop:
            meta.update(found=int(firsts[-1]), kept=len(kept), dropped_count=len(dropped), dropped=dropped)
        writer.splits = {split: np.searchsorted(kept, rows[np.isin(rows, kept)]) for split, rows in joined_splits(parts).items()}
    return Store.open(out)


def _common_meta(resolution: int, contours: bool) -> dict[str, Any]:
    return {"resolution": resolution, "threshold": THRESHOLD, "contours": contours,
            "convention": "negative inside; image sides; domain [-0.5, 0.5)^2, x right, y down, pixel centres at ((j+0.5)/R-0.5, (i+0.5)/R-0.5)",
            "made_with": {"numpy": np.__version__, "scipy": scipy.__version__, "pillow": PIL.__version__}}


class _Sinks:
    """The four arrays of a store, filled chunk by chunk in order."""

    def __init__(self, writer: StoreWriter, resolution: int) -> None:
        self.writer = writer
        self.sdf = writer.stream("sdf", (resolution, resolution), np.float32)
        self.points = writer.stream("contour_points", (2,), np.float32)
        self.counts: list[NDArray[np.int64]] = []

    def append(self, rows: _Rows) -> None:
        self.sdf.append(rows.sdf)
        self.points.append(rows.points)
        self.counts.append(rows.counts)

    def close(self, labels: NDArray[Any]) -> None:
        self.writer.add("contour_offsets", np.concatenate([[0], np.cumsum(np.concatenate(self.counts))]).astype(np.int64))
        self.writer.add("labels", labels.astype(np.int64))


def _rows_from_digits(images: NDArray[np.uint8], first: int, resolution: int, contours: bool, drop: bool) -> _Rows:
    """(n, H, W) uint8 -> SDFs. An image that has no edge is an error where the source is a fixed, known data set."""
    sdfs, kept, dropped = [], [], []
    for k, image in enumerate(images):
        try:
            sdfs.append(sdf_from_mask(mask_from_image(image, resolution, threshold=THRESHOLD)))
            kept.append(k)
        except InputError as error:
            if not drop:
                raise InputError(f"An image has no shape: {error.what}", where=f"image {first + k}", cause=error.cause, fix=error.fix) from error
            dropped.append((k, f"{error.what} ({error.cause})"))
    return _pack(sdfs, resolution, contours, kept, dropped)


def _rows_from_files(paths: Sequence[Path], resolution: int, foreground: Foreground, contours: bool) -> _Rows:
    sdfs, kept, dropped = [], [], []
    for k, path in enumerate(paths):
        try:
            grey = read_silhouette(path, foreground=foreground)
            sdfs.append(sdf_from_mask(mask_from_image(grey, resolution, threshold=THRESHOLD)))
            kept.append(k)
        except InputError as error:
            dropped.append((k, f"{error.what} ({error.cause})"))
    return _pack(sdfs, resolution, contours, kept, dropped)


def _pack(sdfs: list[NDArray[np.float32]], resolution: int, contours: bool, kept: list[int], dropped: list[tuple[int, str]]) -> _Rows:
    points = [contour_points(sdf) for sdf in sdfs] if contours else []
    return _Rows(np.stack(sdfs) if sdfs else np.zeros((0, resolution, resolution), np.float32),
                 np.concatenate(points) if points else np.zeros((0, 2), np.float32),
                 np.array([len(p) for p in points] if contours else [0] * len(sdfs), dtype=np.int64), kept, dropped)


def _run(jobs: Iterable[tuple[Any, ...]], n_jobs: int, workers: int | None, progress: bool | Report, *, total: int) -> Iterator[_Rows]:
    """Results of `job[0](*job[1:])` in the order of the jobs, from `workers` processes (None: one per core this process may use)."""
    workers = min(workers or usable_cores(), n_jobs) if main_can_be_imported() else 1
    done = 0
    with reporter(progress, total, "signed distances") as report:
        for rows in _in_processes(jobs, workers) if workers > 1 else (job[0](*job[1:]) for job in jobs):
            yield rows
            done += len(rows.kept) + len(rows.dropped)
            report(done, total)


def _in_processes(jobs: Iterable[tuple[Any, ...]], workers: int) -> Iterator[_Rows]:
    # spawn, not fork: the caller may have started threads (torch does), and a fork copies their locks as they are
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    waiting: deque[Future[_Rows]] = deque()
    try:
        for job in jobs:  # a few jobs ahead, so that results do not pile up in memory
            waiting.append(pool.submit(*job))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise UsageError("A worker process ended early", where=f"{workers} workers",
                         cause="called from a script without `if __name__ == '__main__':`, or too little memory",
                         fix="add that line to the script, or use workers=1") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _check_counts(*, workers: int | None = None, val: int | None = None, limit: int | None = None, count: int | None = None) -> None:
    for name, value, least in (("workers", workers, 1), ("val", val, 0), ("limit", limit, 2), ("count", count, 1)):
        if value is not None and value < least:
            raise UsageError(f"{name} must be at least {least}", where=f"{name}={value}", fix=f"use {least} or more")


def _sha256_or_unreadable(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError:
        return "unreadable"  # it will be dropped, with the reason, when it is decoded
