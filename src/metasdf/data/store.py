"""The data-set store: a folder of plain `.npy` arrays and one `manifest.json`.

    DATA/
      manifest.json      format, version, kind, arrays, splits, meta, request, fingerprint
      sdf.npy ...        one file per array, memory-mapped when read
      items/             where an item is much data: one file for each, in order; the arrays then hold what is known of all of them

A store is complete or absent: it is written in a hidden folder beside its final name and renamed once, when every byte is on the disk.
The manifest holds size, type and SHA-256 of every array. Reading checks names, sizes and types always, checksums on request, and never
unpickles anything. `request` (checksums of the sources and the parameters) says what the store was made from: the same request finds the
store again, another one is refused. `fingerprint` says what is inside: equal fingerprints are equal arrays and splits.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import ArrayLike, DTypeLike, NDArray

from metasdf.errors import InputError, MetaSDFError, UsageError

FORMAT = "metasdf-store"
VERSION = 1
MANIFEST = "manifest.json"
IMAGES, MESHES = "image-sdf-2d", "mesh-sdf-3d"  # kinds of stores
MAX_MANIFEST_BYTES = 256 * 2**20
SPLIT_PREFIX = "split_"
ITEMS = "items"
PAGE = "review.html"
LITTER = (".DS_Store", "Thumbs.db", "desktop.ini")  # what file managers leave behind
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_ITEM = re.compile(r"[0-9a-f]{8,64}\.safetensors")
_PLAIN_KINDS = "biuf"  # booleans, integers, floats: nothing that could need a pickle
_WRITE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EFBIG}
_REMAKE = "prepare the data set again (with --force to replace this folder)"


class Store:
    """A complete data set on disk. Open it with `Store.open`; `arrays` are read-only memory maps."""

    def __init__(self, path: Path, manifest: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
        self.path = path
        self.kind: str = manifest["kind"]
        self.meta: dict[str, Any] = manifest["meta"]
        self.request: dict[str, Any] = manifest["request"]
        self.fingerprint: str = manifest["fingerprint"]
        self._count: int = manifest["count"]
        self._items: list[dict[str, Any]] = manifest.get(ITEMS, [])
        chosen = {name: entry["array"] for name, entry in manifest["splits"].items()}
        self.arrays: Mapping[str, NDArray[Any]] = MappingProxyType({k: a for k, a in arrays.items() if k not in chosen.values()})
        self.splits: Mapping[str, NDArray[np.int64]] = MappingProxyType({name: arrays[array] for name, array in chosen.items()})

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = False) -> Store:
        """Open and check a store; `verify` also reads every byte and compares SHA-256.

        Raises UsageError if nothing is there, InputError (naming the file) if it is no store, or is truncated, damaged or unsafe.
        """
        path = Path(path)
        manifest = _read_manifest(path)
        arrays = {name: _open_array(path, name, entry, verify=verify) for name, entry in manifest["arrays"].items()}
        for split, entry in manifest["splits"].items():
            _check_split(arrays[entry["array"]], manifest["count"], split, path / MANIFEST)
        for entry in manifest.get(ITEMS, []):
            _check_file(path / ITEMS / entry["file"], entry, f"The item {entry['file']}", verify=verify)
        return cls(path, manifest, arrays)

    def split(self, name: str) -> NDArray[np.int64]:
        """Row numbers of a split; UsageError that lists the splits if there is none of that name."""
        if name not in self.splits:
            raise UsageError(f"The data set has no split {name!r}", where=self.path, fix=f"use one of: {', '.join(self.splits) or '(none)'}")
        return self.splits[name]

    def item(self, row: int) -> Path:
        """The file of one item, where items are files."""
        return self.path / ITEMS / str(self._items[row]["file"])

    def checksum(self, row: int) -> str:
        """SHA-256 of one item's file."""
        return str(self._items[row]["sha256"])

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} {len(rows)}" for name, rows in self.splits.items())
        return f"Store({str(self.path)!r}, kind={self.kind!r}, {len(self)} items: {sizes})"


class StoreWriter:
    """Context manager that writes a store; on any exception nothing is left, and the target is as before.

        with StoreWriter(path, kind="image-sdf-2d", request=request, meta=meta) as w:
            w.create("sdf", (n, 64, 64), np.float32)[:] = ...     # a memory map to fill
            w.add("labels", labels)                               # an array at hand
            points = w.stream("contour_points", (2,), np.float32) # rows appended in order, number unknown in advance
            w.splits = {"train": rows, "test": other_rows}

    An item is a row of the first array (set `count` to say otherwise). After a SIGKILL or a power cut a hidden folder
    `.NAME.partial-*` may remain beside the target; it is never read and can be deleted.
    """

    def __init__(self, path: str | Path, *, kind: str, request: dict[str, Any], meta: dict[str, Any], force: bool = False) -> None:
        self.path = Path(path)
        self.kind, self.request, self.meta, self.force = kind, request, meta, force
        self.splits: dict[str, ArrayLike] = {}
        self.count: int | None = None
        self._items: list[dict[str, Any]] = []
        self._open: dict[str, np.memmap[Any, Any] | RowStream | None] = {}
        self._folder = Path()

    def __enter__(self) -> StoreWriter:
        _check_target(self.path, force=self.force)
        with _typed_write_errors(self.path):
            parent = self.path.absolute().parent
            parent.mkdir(parents=True, exist_ok=True)
            self._folder = parent / f".{self.path.absolute().name}.partial-{secrets.token_hex(6)}"
            self._folder.mkdir()
        return self

    def create(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> np.memmap[Any, Any]:
        """A writable memory map, zero at first. Disk space is reserved now, so that a full disk is an error and not a crash later."""
        kind, file = _plain_dtype(dtype), self._claim(name)
        with _typed_write_errors(self.path):
            array: np.memmap[Any, Any] = npy.open_memmap(file, mode="w+", dtype=kind, shape=shape)
            if hasattr(os, "posix_fallocate"):
                with file.open("r+b") as handle:
                    os.posix_fallocate(handle.fileno(), 0, file.stat().st_size)
        self._open[name] = array
        return array

    def add(self, name: str, array: ArrayLike) -> None:
        """Write an array that is already in memory."""
        values = np.ascontiguousarray(array)
        _plain_dtype(values.dtype)
        file = self._claim(name)
        with _typed_write_errors(self.path):
            np.save(file, values, allow_pickle=False)
        self._open[name] = None

    def stream(self, name: str, row_shape: tuple[int, ...], dtype: DTypeLike) -> RowStream:
        """An array that grows by `append(rows)`; its length is written when the store is finished."""
        kind = _plain_dtype(dtype)
        stream = RowStream(self._claim(name), row_shape, kind)
        self._open[name] = stream
        return stream

    def link(self, file: Path, *, sha256: str | None = None) -> None:
        """The next item: a file called by hexadecimal digits; it stays where it is, and is not copied on the same disk. sha256: if known."""
        if not _ITEM.fullmatch(file.name):
            raise UsageError(f"Bad item name {file.name!r}", where=self.path, fix="call it by hexadecimal digits and .safetensors")
        with _typed_write_errors(self.path):
            folder = self._folder / ITEMS
            folder.mkdir(exist_ok=True)
            link_or_copy(file, folder / file.name)
            _sync(folder / file.name)
        self._items.append({"file": file.name, "bytes": file.stat().st_size, "sha256": sha256 or sha256_file(file)})

    def page(self, html: str) -> None:
        """A page to look at, beside the data; no part of its fingerprint."""
        with _typed_write_errors(self.path):
            (self._folder / PAGE).write_text(html, encoding="utf-8", errors="backslashreplace")

    def _claim(self, name: str) -> Path:
        if not _NAME.fullmatch(name) or name in self._open:
            raise UsageError(f"Bad or repeated array name {name!r}", where=self.path, fix="use a new name of lower-case letters, digits and _")
        return self._folder / f"{name}.npy"

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if error is None:
                with _typed_write_errors(self.path):
                    self._finish()
            elif isinstance(error, OSError) and not isinstance(error, MetaSDFError):
                with _typed_write_errors(self.path):
                    raise error
        finally:
            for array in self._open.values():
                if isinstance(array, RowStream):
                    array.abandon()
            self._open.clear()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _finish(self) -> None:
        if not self._open:
            raise UsageError("A store needs at least one array", where=self.path, fix="call create, add or stream first")
        first = next(iter(self._open))
        splits = {}
        for split, rows in self.splits.items():
            self.add(SPLIT_PREFIX + split, np.asarray(rows, dtype=np.int64))
            splits[split] = {"array": SPLIT_PREFIX + split}
        arrays = {}
        for name, array in self._open.items():
            if isinstance(array, RowStream):
                array.close()
            elif array is not None:
                array.flush()
            self._open[name] = None  # let go of the map before the folder moves
            file = self._folder / f"{name}.npy"
            saved = _load(file)
            arrays[name] = {"file": file.name, "dtype": saved.dtype.str, "shape": list(saved.shape), "sha256": sha256_file(file),
                            "bytes": file.stat().st_size}
            _sync(file)
        count = arrays[first]["shape"][0] if self.count is None else self.count  # type: ignore[index]
        for split, entry in splits.items():
            _check_split(_load(self._folder / f"{entry['array']}.npy"), count, split, self.path)
        manifest = {"format": FORMAT, "version": VERSION, "kind": self.kind, "count": count, "fingerprint": "", "arrays": arrays,
                    "splits": splits, "request": self.request, "meta": self.meta}
        if self._items:
            manifest[ITEMS] = self._items
        manifest["fingerprint"] = _fingerprint(manifest)
        file = self._folder / MANIFEST
        file.write_text(json.dumps(manifest, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        _sync(file)
        _sync(self._folder)
        _check_target(self.path, force=self.force)  # another process may have finished first
        _move_into_place(self._folder, self.path.absolute())


class RowStream:
    """Appends rows to a `.npy` file whose length is not known in advance. Made by `StoreWriter.stream`."""

    def __init__(self, file: Path, row_shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.row_shape, self.dtype, self.length = tuple(row_shape), dtype, 0
        self._handle = file.open("w+b")
        self._header_end = self._write_header()

    def append(self, rows: ArrayLike) -> None:
        """Write (k, *row_shape) rows after those already there."""
        values = np.ascontiguousarray(rows, dtype=self.dtype)
        if values.shape[1:] != self.row_shape or values.ndim != 1 + len(self.row_shape):
            raise UsageError("Rows of another shape", where=f"{values.shape} appended to rows of {self.row_shape}", fix="append (k, ...) rows")
        self._handle.write(values.tobytes())
        self.length += len(values)

    def close(self) -> None:
        """Write the final length into the header, which numpy pads so that it keeps its size."""
        self._handle.seek(0)
        if self._write_header() != self._header_end:
            raise RuntimeError("this numpy does not pad .npy headers")
        self._handle.close()

    def abandon(self) -> None:
        """Close without finishing: the file is about to be deleted."""
        with contextlib.suppress(OSError):
            self._handle.close()

    def _write_header(self) -> int:
        header = {"descr": npy.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (self.length, *self.row_shape)}
        npy.write_array_header_1_0(self._handle, header)
        return self._handle.tell()


def find_existing(path: str | Path, *, kind: str, request: dict[str, Any], force: bool = False) -> Store | None:
    """The store at `path` if it was made from the same request, None if the way is free; UsageError if something else is there."""
    path = Path(path)
    _check_target(path, force=True)
    if force or not (path / MANIFEST).exists():
        return None
    store = Store.open(path)
    if store.kind == kind and store.request == json.loads(json.dumps(request)):
        return store
    changed = sorted(k for k in {*store.request, *request} if store.request.get(k) != json.loads(json.dumps(request.get(k))))
    raise UsageError("Another data set is already there", where=path, cause=f"it was made with a different {', '.join(changed) or 'kind'}",
                     fix="choose another folder with -o, or replace it with --force")


def link_or_copy(file: Path, target: Path) -> None:
    """A second name for a file where the disk can do that, a copy where it cannot."""
    try:
        os.link(file, target)
    except OSError as error:
        if error.errno in _WRITE_ERRORS - {errno.EPERM, errno.EACCES}:
            raise
        shutil.copyfile(file, target)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _check_target(path: Path, *, force: bool) -> None:
    """Refuse to write over anything but an empty folder or, with force, a store (and nothing beside it): users' files are not ours."""
    if not path.exists() and not path.is_symlink():
        return
    if not path.is_dir() or path.is_symlink():
        raise UsageError("The output is not a folder", where=path, fix="choose another name with -o")
    names = [item.name for item in path.iterdir()]
    if not names:
        return
    others = [name for name in names if name not in (MANIFEST, ITEMS, PAGE, *LITTER) and not name.endswith(".npy")]
    is_store = MANIFEST in names and not others
    if not is_store:
        raise UsageError("The output folder is not empty, and is no data set of ours", where=path, cause=f"it holds {(*others, *names)[0]!r}",
                         fix="choose another folder with -o")
    if not force:
        raise UsageError("A data set is already there", where=path, fix="choose another folder with -o, or replace it with --force")


def _move_into_place(folder: Path, target: Path) -> None:
    old = None
    if target.exists():
        if any(target.iterdir()):  # a folder that is not empty cannot be renamed over: set the old one aside for the moment
            old = target.parent / f".{target.name}.old-{secrets.token_hex(6)}"
            target.rename(old)
        else:
            target.rmdir()
    try:
        folder.rename(target)
    except OSError:
        if old is not None:
            old.rename(target)
        raise
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)
    _sync(target.parent)


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    if not path.exists():
        raise UsageError("The data set does not exist", where=path, cause="a wrong path, or it was never prepared",
                         fix="make one with: metasdf prepare mnist -o DATA")
    if not file.is_file():
        raise InputError("The folder is no data set: it has no manifest.json", where=path, cause="another folder, or an incomplete copy",
                         fix="pass the folder that `metasdf prepare ... -o` wrote")
    if file.stat().st_size > MAX_MANIFEST_BYTES:
        raise InputError("The manifest is absurdly large", where=file, cause="a damaged file", fix=_REMAKE)
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError("The manifest cannot be read", where=file, cause=f"truncated or damaged ({error})", fix=_REMAKE) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InputError("The manifest is not one of a metasdf data set", where=file, cause="the file belongs to something else", fix=_REMAKE)
    if manifest.get("version") != VERSION:
        raise InputError(f"The data set has format version {manifest.get('version')!r}; this program reads version {VERSION}", where=file,
                         cause="written by another version of metasdf", fix="update metasdf, or " + _REMAKE)
    _check_fields(manifest, file)
    if _fingerprint(manifest) != manifest["fingerprint"]:
        raise InputError("The manifest does not match its own fingerprint", where=file, cause="edited or damaged", fix=_REMAKE)
    return manifest


def _check_fields(manifest: dict[str, Any], file: Path) -> None:
    """Types of all fields, and array file names that stay inside the folder."""

    def require(condition: bool, what: str) -> None:
        if not condition:
            raise InputError(f"The manifest is damaged: {what}", where=file, cause="edited, or not written by metasdf", fix=_REMAKE)

    for key, kind in {"kind": str, "fingerprint": str, "arrays": dict, "splits": dict, "meta": dict, "request": dict, "count": int}.items():
        require(isinstance(manifest.get(key), kind), f"{key} is missing or has a wrong type")
    require(manifest["count"] >= 0, "count is negative")
    for name, entry in manifest["arrays"].items():
        require(isinstance(entry, dict), f"array {name} has no entry")
        # only a name we would write ourselves: no separators, no "..", no absolute path
        require(bool(_NAME.fullmatch(name)) and entry.get("file") == f"{name}.npy", f"array {name} has an unsafe file name")
        require(isinstance(entry.get("dtype"), str) and isinstance(entry.get("sha256"), str), f"array {name} lacks dtype or sha256")
        require(isinstance(entry.get("bytes"), int), f"array {name} lacks its size")
        shape = entry.get("shape")
        require(isinstance(shape, list) and all(isinstance(n, int) and n >= 0 for n in shape), f"array {name} has a bad shape")
    items = manifest.get(ITEMS, [])
    require(isinstance(items, list) and len(items) in (0, manifest["count"]), "items are no list, or not one for each row")
    for entry in items:
        require(isinstance(entry, dict) and bool(_ITEM.fullmatch(str(entry.get("file")))), "an item has an unsafe file name")
        require(isinstance(entry.get("sha256"), str) and isinstance(entry.get("bytes"), int), f"item {entry['file']} lacks its size or checksum")
    for split, entry in manifest["splits"].items():
        require(isinstance(entry, dict) and entry.get("array") in manifest["arrays"], f"split {split} names no array")


def _open_array(path: Path, name: str, entry: dict[str, Any], *, verify: bool) -> NDArray[Any]:
    file = path / entry["file"]
    _check_file(file, entry, f"The array {name}", verify=verify)
    try:
        array = _load(file)
    except (ValueError, OSError, EOFError, SyntaxError) as error:
        raise InputError(f"The array {name} cannot be read", where=file, cause=f"damaged ({error})", fix=_REMAKE) from error
    if array.dtype.str != entry["dtype"] or list(array.shape) != entry["shape"] or array.dtype.kind not in _PLAIN_KINDS:
        raise InputError(f"The array {name} is {array.dtype.str} {array.shape}, the manifest says {entry['dtype']} {tuple(entry['shape'])}",
                         where=file, cause="replaced or damaged", fix=_REMAKE)
    return array


def _check_file(file: Path, entry: dict[str, Any], what: str, *, verify: bool) -> None:
    if not file.is_file():
        raise InputError(f"{what} is missing", where=file, cause="an incomplete copy of the data set", fix=_REMAKE)
    size = file.stat().st_size
    if size != entry["bytes"]:
        raise InputError(f"{what} has {size:,} bytes instead of {entry['bytes']:,}", where=file, cause="truncated, or an incomplete copy",
                         fix=_REMAKE)
    if verify and sha256_file(file) != entry["sha256"]:
        raise InputError(f"{what} does not match its checksum", where=file, cause="changed or damaged on disk", fix=_REMAKE)


def _load(file: Path) -> NDArray[Any]:
    with file.open("rb") as handle:
        empty = 0 in _npy_shape(handle)
    return np.load(file, mmap_mode=None if empty else "r", allow_pickle=False)  # nothing can be mapped where there are no bytes


def _npy_shape(handle: BinaryIO) -> tuple[int, ...]:
    version = npy.read_magic(handle)
    if version != (1, 0):
        raise ValueError(f"npy version {version}")
    shape, fortran_order, _ = npy.read_array_header_1_0(handle)
    if fortran_order:
        raise ValueError("column-major array")
    return shape


def _check_split(rows: NDArray[Any], count: int, split: str, where: Path) -> None:
    if rows.dtype != np.int64 or rows.ndim != 1 or (rows.size and (rows.min() < 0 or rows.max() >= count or len(np.unique(rows)) != rows.size)):
        raise InputError(f"The split {split} is not a list of distinct rows below {count}", where=where, cause="damaged", fix=_REMAKE)


def _fingerprint(manifest: dict[str, Any]) -> str:
    contents = {"kind": manifest["kind"], "count": manifest["count"], "splits": manifest["splits"],
                "arrays": {n: [e["dtype"], e["shape"], e["sha256"]] for n, e in manifest["arrays"].items()}}
    if ITEMS in manifest:
        contents[ITEMS] = [entry["sha256"] for entry in manifest[ITEMS]]
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()


def _plain_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    plain = np.dtype(dtype)
    if plain.kind not in _PLAIN_KINDS:
        raise UsageError(f"Arrays of {plain} cannot be stored", where=f"dtype {plain}", fix="use numbers or booleans; put text into meta")
    return plain


@contextlib.contextmanager
def _typed_write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _WRITE_ERRORS:
            raise
        raise InputError(f"The data set cannot be written: {error.strerror}", where=path, cause="a full disk, or no permission to write there",
                         fix="free some space, or choose another folder with -o; nothing was left behind") from error


def _sync(path: Path) -> None:
    """Force a file or folder to the disk; platforms that cannot open folders skip those."""
    with contextlib.suppress(PermissionError):
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
