"""Scans: what is observed of a 3D shape, out of a file. Points of its surface, signed distances around it, or a mesh.

Numbers are float64, in the file's own units and axes. What was left out or looks odd is said in the notes; what cannot be used is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metasdf.errors import InputError, UsageError
from metasdf.geometry.cloud import find_outliers, remarks
from metasdf.geometry.columns import NAMES, TEXT_SUFFIXES, Columns, asked, from_npy, from_npz, from_ply, from_text
from metasdf.geometry.distance import unsigned_distance
from metasdf.geometry.frame import farthest_point
from metasdf.geometry.io import MESH_SUFFIXES, read_mesh
from metasdf.geometry.mesh import Mesh, first_of_equal_rows
from metasdf.geometry.samples import crossings
from metasdf.geometry.sampling import surface_points
from metasdf.geometry.tables import finite, must_exist

Floats = NDArray[np.float64]
Outliers = Literal["keep", "drop"]

SCAN_SUFFIXES = (*TEXT_SUFFIXES, ".npy", ".npz", *MESH_SUFFIXES)
FEWEST = 10  # points: fewer show no solid


class Scan(NamedTuple):
    """kind, and x (N, 3): distinct points of a surface, distinct samples, or the vertices of a mesh.

    normals (N, 3) of points, of length 1, if all have one; s (N,) of samples, negative inside; mesh. units: what to call the file's.
    notes: sentences for the user.
    """

    kind: Literal["points", "samples", "mesh"]
    x: Floats
    normals: Floats | None
    s: Floats | None
    mesh: Mesh | None
    units: str
    notes: tuple[str, ...]


class Residual(NamedTuple):
    """Distances of observations to a result, in their own units: root mean square, median, and what 95 of 100 keep to."""

    rms: float
    median: float
    p95: float


def read_scan(path: str | Path, *, columns: str | None = None, outliers: Outliers = "keep") -> Scan:
    """Read a scan: text (.csv .txt .xyz .pts), .npy, .npz, a .ply with or without faces, or any other mesh file.

    columns: what the columns of text or .npy are, as in "x,y,z,_,s" (_ is not used). Otherwise a header says it, or their number and looks:
    x,y,z; x,y,z,s if the fourth may be signed distances; x,y,z,nx,ny,nz if the last three are unit vectors.
    outliers: points far from all others are reported, and with "drop" left out.
    Raises UsageError for what is wrong with the request, and InputError, with file and line, for what cannot be used.
    """
    path = Path(path)
    must_exist(path, fix="pass a point cloud, samples or a mesh")
    suffix, names = path.suffix.lower(), asked(columns)
    if names and suffix not in (*TEXT_SUFFIXES, ".npy"):
        raise UsageError(f"the columns of {suffix or 'such'} files cannot be named", where=path, cause="they have names of their own",
                         fix="leave columns out")  # fmt: skip
    notes: list[str] = []
    found: Columns | None = None
    if suffix in TEXT_SUFFIXES:
        found = from_text(path, names)
    elif suffix == ".npy":
        found = from_npy(path, names)
    elif suffix == ".npz":
        found, notes = from_npz(path)
    elif suffix == ".ply":
        found = from_ply(path)
    elif suffix not in MESH_SUFFIXES:
        raise InputError(f"files of type {suffix or '(none)'} cannot be read as scans", where=path, cause="another format, or a missing ending",
                         fix=f"convert it to one of {' '.join(SCAN_SUFFIXES)}")  # fmt: skip
    if found is None:
        mesh = read_mesh(path)
        units = "metres" if suffix in (".glb", ".gltf") else "units of the input"  # only glTF has but one unit
        return Scan("mesh", mesh.vertices, None, None, mesh, units, tuple(remarks(mesh.vertices)))
    return _clean(found, notes, drop=outliers == "drop", where=path)


def surface_of(scan: Scan, n: int, *, rng: np.random.Generator) -> Floats:
    """Points (K, 3) on what was scanned: the points themselves, n drawn from a mesh, uniform by area, or where samples cross zero."""
    if scan.mesh is not None:
        return surface_points(scan.mesh, n, rng=rng).points
    return scan.x if scan.s is None else crossings(scan.x, scan.s)


def residual(x: Floats, model: Mesh | Callable[[Floats], Floats], s: Floats | None = None) -> Residual:
    """Of points x (N, 3), or samples with distances s (N,), to a mesh or signed distance function in the same units and axes.

    A mesh has no sign: the absolute distances of samples are compared with it. Raises InputError where distances are not finite.
    """
    d = unsigned_distance(model, x) if isinstance(model, Mesh) else np.asarray(model(x), np.float64)
    if s is not None:
        d = d - (np.abs(s) if isinstance(model, Mesh) else s)
    if not np.isfinite(d).all():
        raise InputError(f"{(~np.isfinite(d)).sum():,} of {len(d):,} distances to the result are not finite", cause="a fit that diverged",
                         fix="use fewer steps, or another prior")  # fmt: skip
    d = np.abs(d)
    return Residual(float(np.sqrt((d**2).mean())), float(np.median(d)), float(np.quantile(d, 0.95)))


def _clean(found: Columns, notes: list[str], *, drop: bool, where: Path) -> Scan:
    """Distinct finite points in enough places, or an InputError that says what is wrong."""
    if unused := [name for name in found if name not in (*NAMES, "_")]:
        notes.append(f"not used: {', '.join(unused)}")
    table = finite(np.stack([found[name] for name in ("x", "y", "z", "s") if name in found], 1), where=where)
    if not len(table):
        raise InputError("the file holds no points", where=where, cause="an empty export, or nothing finite in it", fix="export it again")
    if (np.ptp(table[:, :3], 0) == 0).all():
        what = "one point shows no shape" if len(table) == 1 else f"all {len(table):,} points are the same"
        raise InputError(what, where=where, cause="a failed scan, or rounded coordinates", fix="give points all over the surface")
    first = first_of_equal_rows(table + 0.0) == np.arange(len(table))  # -0.0 equals 0.0
    if not first.all():
        notes.append(f"{(~first).sum():,} of {len(first):,} points are exact copies of others and were left out")
    normals = _normals(found, first, notes)
    table = table[first]
    if len(table) < FEWEST:
        raise InputError(f"{len(table)} different points cannot show a solid", where=where, cause="a scan cut off, or rounded coordinates",
                         fix=f"give at least {FEWEST}, better several hundred")  # fmt: skip
    if table.shape[1] == 4 and not table[:, 3].any():
        raise InputError("every distance is zero, so these are surface points", where=where, cause="no distances were computed",
                         fix="leave out that column, and use a level-set prior")  # fmt: skip
    if table.shape[1] == 3 and (far := find_outliers(table)).any():
        place = ", ".join(f"{v:.6g}" for v in table[far][0])
        larger = farthest_point(table[~far]).scale / farthest_point(table).scale
        notes.append(f"{far.sum():,} points lie far from all others, the first at ({place}); with them the shape seems {larger:.3g} times as large. "
                     + ("They were left out" if drop else "If they are no part of it, leave them out: --outliers drop"))  # fmt: skip
        if drop:
            table, normals = table[~far], None if normals is None else normals[~far]
    x, s = table[:, :3].copy(), table[:, 3].copy() if table.shape[1] == 4 else None
    return Scan("points" if s is None else "samples", x, normals, s, None, "units of the input", (*notes, *remarks(x)))


def _normals(found: Columns, kept: NDArray[np.bool_], notes: list[str]) -> Floats | None:
    if not {"nx", "ny", "nz"} <= found.keys():
        return None
    normals = np.stack([found[name][kept] for name in ("nx", "ny", "nz")], 1)
    with np.errstate(all="ignore"):
        length = np.linalg.norm(normals, axis=1, keepdims=True)
    if missing := int((~((length > 0) & (length < np.inf))).sum()):
        notes.append(f"{missing:,} of {len(normals):,} normals are missing, so none is used")
        return None
    return normals / length
