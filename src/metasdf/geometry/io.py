"""Mesh files in and out. All readers are ours: files come from strangers, and what a general library leaves out silently is lost surface.

What is read: every triangle, quadrilateral, polygon, strip and fan of every object, group and scene in the file, at its place, as one mesh.
What is not: points, lines, materials, textures, normals; no file is opened but the one named, save the buffers of a .gltf in its own folder.
Units and axes are as in the file: nothing is converted, and what a file says about its units or its upward axis is not applied.
Vertices that no face uses are dropped; nothing else is cleaned here (see `mesh.clean`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from metasdf.errors import InputError, UsageError
from metasdf.files import write_whole
from metasdf.geometry.formats import ac3d, collada, gltf, obj, off, ply, stl, threemf
from metasdf.geometry.formats.common import EXPORT_AGAIN, Sibling
from metasdf.geometry.mesh import Mesh, check, prune

_T = TypeVar("_T")
MAX_BYTES = 2**31  # of one file; larger ones need another way than reading them whole
_PARSERS: dict[str, Callable[..., Mesh]] = {
    ".obj": obj.parse, ".ply": ply.parse, ".stl": stl.parse, ".off": off.parse, ".glb": gltf.parse, ".gltf": gltf.parse,
    ".3mf": threemf.parse, ".dae": collada.parse, ".ac": ac3d.parse}  # fmt: skip
_ENCODERS: dict[str, Callable[[Mesh], bytes]] = {
    ".ply": lambda mesh: ply.encode(*mesh), ".obj": obj.encode, ".stl": stl.encode, ".off": off.encode, ".glb": gltf.encode}  # fmt: skip
MESH_SUFFIXES = tuple(_PARSERS)
MESH_OUTPUTS = tuple(_ENCODERS)  # that are written


def read_mesh(path: str | Path) -> Mesh:
    """A mesh file as one sound mesh (see `mesh.check`), in the file's own units.

    Raises UsageError if the file does not exist or has another suffix than those of MESH_SUFFIXES, InputError if it is damaged, too large
    (2 GiB), or has no surface.
    """
    path = Path(path)
    _known(path.suffix, _PARSERS, path)
    return read_mesh_bytes(_contents(path), path.suffix, where=path, sibling=partial(_beside, path.parent))


def read_mesh_bytes(data: bytes, suffix: str, *, where: object = "", sibling: Sibling | None = None) -> Mesh:
    """As `read_mesh`, of a file that is in memory. `where` is what errors call it; `sibling` reads a file beside it, which some .gltf need."""
    parse = _known(suffix, _PARSERS, where)
    more = {"sibling": sibling} if parse is gltf.parse else {}
    try:
        with np.errstate(all="ignore"):  # absurd numbers of damaged files: `check` finds what comes out
            mesh = parse(data, where=where, **more)
    except InputError:
        raise
    except MemoryError as error:
        raise InputError("The mesh does not fit into memory", where=where, cause=f"a file of {len(data):,} bytes", fix="simplify it first") from error
    # What damage does to JSON, XML, zips and lists of numbers has no common type
    except Exception as error:
        raise InputError(f"The mesh file cannot be read: {error or type(error).__name__}", where=where, cause=f"damaged, or not {suffix}",
                         fix=EXPORT_AGAIN) from error  # fmt: skip
    return check(prune(mesh), where=where)


def read_points(path: str | Path) -> NDArray[np.float64]:
    """The vertices (N, 3) of a PLY file, with or without faces, finite or not. Raises as `read_mesh`."""
    return _ply(path, ply.parse_points)


def read_cloud(path: str | Path) -> dict[str, NDArray[np.float64]] | None:
    """All numbers (N,) that the points of a PLY file have, by name: x, y, z, and nx or whatever else there is. None if it has faces: a mesh.

    Raises as `read_mesh`.
    """
    return _ply(path, ply.parse_cloud)


def _ply(path: str | Path, parse: Callable[..., _T]) -> _T:
    path = Path(path)
    _known(path.suffix, {".ply": None}, path)
    try:
        return parse(_contents(path), where=path)
    except InputError:
        raise
    except (ValueError, LookupError, OverflowError, MemoryError) as error:
        raise InputError(f"The points cannot be read: {error}", where=path, cause="damaged, or not PLY", fix="write the file again") from error


def write_mesh(path: str | Path, mesh: Mesh) -> None:
    """Write .ply, .obj or .off (all digits are kept), .stl or .glb (rounded to float32). The file is complete or absent.

    Raises UsageError for another suffix, InputError for an unsound mesh, and as `files.write_whole`.
    """
    path = Path(path)
    encode = _known(path.suffix, _ENCODERS, path)
    write_whole(path, encode(check(mesh, where=path)))


def _known(suffix: str, table: dict[str, _T], where: object) -> _T:
    if suffix.lower() not in table:
        raise UsageError(f"Not a suffix of a mesh file: {suffix!r}", where=where, fix=f"use one of {', '.join(table)}")
    return table[suffix.lower()]


def _contents(path: Path) -> bytes:
    if not path.is_file():
        raise UsageError("The mesh file does not exist", where=path, cause="a wrong path, or a folder", fix="check the path")
    try:
        with path.open("rb") as handle:
            data = handle.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"The file cannot be read: {error.strerror}", where=path, cause="no permission, or a failing disk") from error
    if len(data) > MAX_BYTES:
        raise InputError(f"The file has more than {MAX_BYTES:,} bytes", where=path, cause="a scan of unusual size", fix="simplify it first")
    return data


def _beside(folder: Path, name: str) -> bytes:
    """A buffer in the folder of a .gltf. The name comes out of the file: it must not lead anywhere else."""
    escapes = PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or any(c in name for c in "\\:\0")
    if escapes or not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise InputError(f"The file needs {name[:80]!r}, which is not in its own folder", where=folder, cause="made to do harm, or moved",
                         fix="put the buffer beside the .gltf")  # fmt: skip
    if not (folder / name).is_file():
        raise InputError(f"The file needs {name[:80]!r}, which is not there", where=folder, cause="an incomplete copy", fix="copy it too")
    return _contents(folder / name)
