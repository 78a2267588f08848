"""Tables of numbers from files of strangers: text with columns, .npy and .npz.

Sizes are compared with what a file says of itself before memory is taken, and nothing is ever unpickled. What the columns mean is not known here.
"""

from __future__ import annotations

import array
import io
import math
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from metasdf.errors import InputError, UsageError
from metasdf.geometry.mesh import LARGEST

Floats = NDArray[np.float64]
Header = Callable[[list[str], str, bool], list[str] | None]

MAX_ARRAY_BYTES = 2**30  # of one array in an .npz, which may be packed very small


class Table(NamedTuple):
    """rows (N, C), all finite; what the file calls its columns, if it does; where its first row is, for errors."""

    rows: Floats
    names: list[str] | None
    where: str


def must_exist(path: Path, *, fix: str) -> None:
    if not path.is_file():
        raise UsageError("the input is a folder" if path.is_dir() else "the input does not exist", where=path, cause="a wrong path", fix=fix)


def read_text(path: Path, header: Header, *, counts: bool = False) -> Table:
    """Rows of numbers separated by commas, semicolons or blanks. Blank lines and comments (# or //) are skipped.

    header(names, where, comment) says what the columns of a line of words before the first row are; None if a comment is just a comment.
    counts: lines of a single whole number announce how many rows follow. Raises InputError with the line.
    """
    names: list[str] | None = None
    numbers = array.array("d")
    width = first = bad = first_bad = announced = 0
    try:
        for number, tokens, comment in _lines(path):
            if names is None and not numbers and not _is_number(tokens[0]):
                names = header(tokens, f"{path}, line {number}", comment)
                width = len(names) if names else 0
                continue
            if comment:
                continue
            try:
                values = [float(token) for token in tokens]
            except ValueError:
                wrong = next(token for token in tokens if not _is_number(token))
                raise InputError(f"{wrong[:40]!r} is not a number", where=f"{path}, line {number}", cause="a damaged line",
                                 fix="write numbers with a decimal point, separated by commas or blanks") from None  # fmt: skip
            if counts and len(values) == 1 and tokens[0].isdigit():
                announced += int(tokens[0])
                continue
            width, first = width or len(values), first or number
            if len(values) != width:
                raise InputError(f"the line has {len(values)} columns, those before have {width}", where=f"{path}, line {number}",
                                 cause="a damaged or incomplete line", fix="give every line the same columns")  # fmt: skip
            if not all(map(math.isfinite, values)):
                bad, first_bad = bad + 1, first_bad or number
            numbers.extend(values)
    except UnicodeDecodeError as error:
        raise InputError("the file is no text", where=path, cause="a binary file under this name", fix="export it as comma-separated text") from error
    except OSError as error:
        raise InputError(f"the file cannot be read: {error.strerror}", where=path, cause="no permission, or a failing disk",
                         fix="copy it to a place where it can be read") from error  # fmt: skip
    if not numbers:
        raise InputError("the file holds no points", where=path, cause="nothing but a header" if names else "an empty file", fix="export it again")
    rows = np.frombuffer(numbers, np.float64).reshape(-1, width)
    if announced and announced != len(rows):
        raise InputError(f"the file announces {announced:,} points and has {len(rows):,}", where=path, cause="cut off, or put together by hand",
                         fix="copy it again, or leave out the line with the number")  # fmt: skip
    if bad:
        raise _not_finite(bad, len(rows), f"on line {first_bad}", path, fix="remove those lines")
    return Table(finite(rows, where=path), names, f"{path}, line {first}")


def read_npy(path: Path, *, widths: Sequence[int], expected: str, fix: str) -> Floats:
    """Rows (N, C), finite, of an .npy file; C is one of `widths`. `expected` and `fix` say to the user what that means. Raises InputError."""
    try:
        found = _array(path.read_bytes())
    # What damage does to a header has no common type
    except Exception as error:
        raise InputError("the array cannot be read", where=path, cause=f"empty, damaged, or no plain .npy file ({error or type(error).__name__})",
                         fix="save it again with numpy.save") from error  # fmt: skip
    if found.dtype.kind not in "fiu":
        raise InputError(f"the array holds {found.dtype}, not real numbers", where=path, cause="other data", fix="save points.astype(float)")
    if found.ndim != 2 or found.shape[1] not in widths:
        if found.ndim == 2 and found.shape[0] in widths:
            raise InputError(f"the array has shape {found.shape}", where=path, cause="it is transposed: points go down the rows", fix="save points.T")
        cause = "an image saved as an array" if found.ndim == 2 and min(found.shape) > 7 else "another kind of data"
        raise InputError(f"the array has shape {found.shape}, not {expected}", where=path, cause=cause, fix=fix)
    return finite(found.astype(np.float64), where=path)


def read_npz(path: Path, names: Sequence[str], *, fix: str) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Those of the named arrays that are there, and the names of all others. Raises InputError if one holds no real numbers, or is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            there = [name.removesuffix(".npy") for name in archive.namelist()]
            return {name: _member(archive, name) for name in names if name in there}, [name for name in there if name not in names]
    # Damaged zips raise what the decompressor happens to say
    except Exception as error:
        raise InputError(f"The file cannot be read: {error or type(error).__name__}", where=path, cause="damaged, cut off, or no .npz",
                         fix=fix) from error  # fmt: skip


def finite(rows: Floats, *, where: object) -> Floats:
    """The rows (N, C) themselves. Raises InputError, counting from 0, if some hold NaN, infinity, or what overflows when it is squared."""
    bad = np.flatnonzero(~np.isfinite(rows).all(1))
    if len(bad):
        raise _not_finite(len(bad), len(rows), f"is row {bad[0]}", where, fix="remove them: rows[np.isfinite(rows).all(1)]")
    if not (np.abs(rows) < LARGEST).all():
        raise InputError(f"numbers go beyond {LARGEST:g}", where=where, cause="damaged, or another kind of data", fix="export it again")
    return rows


def _not_finite(bad: int, total: int, first: str, where: object, *, fix: str) -> InputError:
    return InputError(f"{bad} of {total} rows hold NaN or infinity, the first {first}", where=where, cause="missing measurements", fix=fix)


def _lines(path: Path) -> Iterator[tuple[int, list[str], bool]]:
    """Number, columns and whether it is a comment of each line that is not blank."""
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            text = line.strip()
            comment = text.startswith(("#", "//"))
            text = text.lstrip("#/ ") if comment else text
            if "," in text and ";" in text and not comment:
                raise InputError("the line has both commas and semicolons", where=f"{path}, line {number}", cause="decimal commas",
                                 fix="write numbers with a decimal point")  # fmt: skip
            if text:
                pieces = text.replace(";", ",").split(",") if "," in text or ";" in text else text.split()
                yield number, [piece.strip().strip("\"'") for piece in pieces], comment


def _is_number(token: str) -> bool:
    try:
        float(token)
    except ValueError:
        return False
    return True


def _member(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    info = archive.getinfo(f"{name}.npy")
    if info.file_size > MAX_ARRAY_BYTES:
        raise ValueError(f"{name} has {info.file_size:,} bytes, more than {MAX_ARRAY_BYTES:,}")
    with archive.open(info) as member:
        found = _array(member.read(info.file_size))
    if found.dtype.kind not in "fiu":
        raise ValueError(f"{name} holds {found.dtype}, not real numbers")
    return found


def _array(data: bytes) -> NDArray[Any]:
    """The array of an .npy file. ValueError if its size is not what its header says."""
    stream = io.BytesIO(data)
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"npy version {version}")
    shape, columns_first, dtype = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(stream)
    body = memoryview(data)[stream.tell() :]
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(body):
        raise ValueError(f"{dtype} {shape} in {len(body):,} bytes")
    return np.frombuffer(body, dtype).reshape(shape, order="F" if columns_first else "C")
