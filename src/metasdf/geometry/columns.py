"""The columns of files of 3D points, by name: x, y, z, then nx, ny, nz for normals, s for signed distances, and whatever else there is.

A name comes from the request, from the file, or, where there is no doubt, from what the numbers look like. A column that nobody asked for is
called _.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metasdf.errors import InputError, UsageError
from metasdf.geometry.io import read_cloud
from metasdf.geometry.samples import looks_signed
from metasdf.geometry.tables import read_npy, read_npz, read_text

Floats = NDArray[np.float64]
Columns = dict[str, Floats]  # all (N,)

TEXT_SUFFIXES = (".csv", ".txt", ".xyz", ".pts")
NAMES = ("x", "y", "z", "nx", "ny", "nz", "s")
DISTANCE_NAMES = ("s", "sdf", "distance")
UNIT = 0.05  # how far the length of a unit vector may be off: normals with two decimals
_NAME = "say what the columns are by a header, or --columns x,y,z,_,s (_ is not used)"
_MEANING = {"points": NAMES[:3], "normals": NAMES[3:6], "sdf": NAMES[6:], "pos": ("x", "y", "z", "s"), "neg": ("x", "y", "z", "s")}  # of arrays


def asked(columns: str | None) -> list[str]:
    """Names as a user writes them, "x,y,z,_,s"; none for None. Raises UsageError."""
    names = [] if columns is None else [name.strip().lower() for name in columns.split(",")]
    used = {name for name in names if name != "_"}
    if columns is not None and not ({*"xyz"} <= used <= {*NAMES} and len(used) == len(names) - names.count("_")):
        raise UsageError(f"not the names of columns: {columns!r}", where="columns",
                         cause=f"one is missing, twice there, or none of {', '.join(NAMES)}",
                         fix='write them as in "x,y,z,nx,ny,nz" or "x,y,z,_,s"')  # fmt: skip
    return names


def from_text(path: Path, names: list[str]) -> Columns:
    """.csv .txt .xyz .pts; `names` as asked for, none otherwise. Raises InputError, as all below."""
    pts = path.suffix.lower() == ".pts"
    rows, header, where = read_text(path, partial(_header, names=names), counts=pts)
    if names and rows.shape[1] != len(names):
        raise InputError(f"there are {rows.shape[1]} columns, not {len(names)}", where=where,
                         cause=f"columns={','.join(names)!r} does not fit the file", fix=_NAME)  # fmt: skip
    if pts and rows.shape[1] > 3:  # an intensity or colours follow, never a distance
        header = header or [*"xyz", *(f"column {k + 1}" for k in range(3, rows.shape[1]))]
    return dict(zip(names or header or _guess(rows, where), rows.T, strict=True))


def from_npy(path: Path, names: list[str]) -> Columns:
    width = len(names)
    rows = read_npy(path, widths=(width,) if names else (3, 4, 6), expected=f"(N, {width})" if names else "(N, 3), (N, 4) or (N, 6)",
                    fix="save 3D points as an (N, 3) array; 2D points are for 2D priors")  # fmt: skip
    return dict(zip(names or _guess(rows, str(path)), rows.T, strict=True))


def from_ply(path: Path) -> Columns | None:
    """None for a mesh. A property s is a place in a texture: distances are called sdf or distance there."""
    cloud = read_cloud(path)
    return cloud and {"texture s" if name == "s" else _canonical(name): column for name, column in cloud.items()}


def from_npz(path: Path) -> tuple[Columns, list[str]]:
    """`points` with `normals` and `sdf`, or DeepSDF's `pos` and `neg`, whose rows that are not finite are left out; and remarks on that."""
    found, others = read_npz(path, tuple(_MEANING), fix="save it again with numpy.savez")
    if "points" not in found and not {"pos", "neg"} <= found.keys():
        raise InputError("the file has neither points nor pos and neg", where=path,
                         cause=f"it has {', '.join([*found, *others])[:80] or 'no arrays'}",
                         fix="save points (N, 3), and normals (N, 3) or sdf (N,) if there are any")  # fmt: skip
    names = [name for name in (("points", "normals", "sdf") if "points" in found else ("pos", "neg")) if name in found]
    unused = [name for name in (*others, *found) if name not in names]
    notes = [f"not used: {', '.join(unused)}"] if unused else []
    arrays = {name: found[name].reshape(-1, 1) if name == "sdf" and found[name].ndim == 1 else found[name] for name in names}
    for name, array in arrays.items():
        if array.ndim != 2 or array.shape[1] != len(_MEANING[name]) or ("points" in arrays and len(array) != len(arrays["points"])):
            raise InputError(f"{name} has shape {array.shape}, not (N, {len(_MEANING[name])})", where=path,
                             cause="transposed, or other data of that name", fix="give each point one row, in all arrays alike")  # fmt: skip
    rows = np.concatenate([array.astype(np.float64) for array in arrays.values()], 1 if "points" in arrays else 0)
    if "points" in arrays:
        return dict(zip([name for key in names for name in _MEANING[key]], rows.T, strict=True)), notes
    whole = np.isfinite(rows).all(1)
    if not whole.all():
        notes.append(f"{(~whole).sum():,} of {len(rows):,} rows of pos and neg are not finite and were left out")
    return dict(zip("xyzs", rows[whole].T, strict=True)), notes


def _canonical(name: str) -> str:
    return "s" if name.lower() in DISTANCE_NAMES else name.lower()


def _header(words: list[str], where: str, comment: bool, *, names: list[str]) -> list[str] | None:
    """What a line of words says of the columns. A comment says something only if it consists of names we know: others are sentences."""
    if names:
        return None if comment else ["_"] * len(words)
    found = [_canonical(word) for word in words]
    twice = any(found.count(name) > 1 for name in NAMES)
    if {*"xyz"} <= set(found) and not twice and (set(found) <= {*NAMES} or not comment):
        return found
    if {"x", "y"} <= set(found) <= {"x", "y", "s"}:
        raise _flat("the header says x and y", where)
    if comment:
        return None
    raise InputError(f"the columns {', '.join(words)[:80]} are not known", where=where, cause="a name twice" if twice else "no x, y and z among them",
                     fix=_NAME)  # fmt: skip


def _guess(rows: Floats, where: str) -> list[str]:
    """Names of columns that have none, if there is no doubt."""
    last, length = rows[:, 3:], np.linalg.norm(rows[:, 3:], axis=1)
    match rows.shape[1]:
        case 2:
            raise _flat("there are 2 columns", where)
        case 3:
            return [*"xyz"]
        case 4:
            some = rows[:: 1 + len(rows) // 50_000]
            if some[:, 3].min() < 0 < some[:, 3].max() and looks_signed(some[:, :3], some[:, 3]):
                return [*"xyzs"]
            what, cause = "the fourth column does not look like signed distances", "an intensity, distances without a sign or in other units"
        case 6:
            unit = np.abs(length - 1) < UNIT
            if unit.mean() > 0.5 and (unit | (length == 0)).all():
                return [*NAMES[:6]]
            if ((last % 1 == 0) & (last >= 0) & (last <= 255)).all():
                return [*"xyz", "red", "green", "blue"]
            what, cause = "columns 4 to 6 are neither unit vectors nor colours", "other measurements"
        case width:
            what, cause = f"there are {width} columns without names", "other measurements, decimal commas, or another separator"
    raise InputError(what, where=where, cause=cause, fix=_NAME)


def _flat(what: str, where: str) -> InputError:
    return InputError(f"{what}: these are 2D points for a 3D prior", where=where, cause="a drawing, or a column that was left out",
                      fix="use a 2D prior, or give x, y and z")  # fmt: skip
