"""Fewer faces for the same surface: for printers, game engines and the web, where a mesh from a grid has far too many."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from metasdf.errors import UsageError
from metasdf.geometry.distance import unsigned_distance
from metasdf.geometry.mesh import Mesh, components, is_watertight
from metasdf.geometry.native import collapsed

FEWEST = 4  # faces that enclose a volume


class Simplified(NamedTuple):
    """moved: the farthest that the new surface was found from the old one, or the old from the new, in units of the mesh. note: a sentence."""

    mesh: Mesh
    moved: float
    note: str


def simplify(mesh: Mesh, faces: float, *, units: str = "units") -> Simplified:
    """The mesh with at most `faces` faces, or that share of its own for a number below 1, by `native.collapsed`.

    A mesh that would lose a piece, or not be closed any longer, stays as it is, and the note says so. moved is measured at the old and new
    vertices and the middles of the new faces and edges, each to the other surface. Raises UsageError for fewer than 4 faces, InputError.
    """
    before = len(mesh.faces)
    target = round(faces * before) if faces < 1 else int(faces)
    if target < FEWEST:
        raise UsageError(f"{target} faces enclose nothing", where=f"simplify={faces:g} of {before:,} faces", fix=f"ask for {FEWEST} or more")
    if before <= target:
        return Simplified(mesh, 0.0, f"not simplified: it has {before:,} faces, no more than the {target:,} asked for")
    found = collapsed(mesh, target)
    if _pieces(found) != _pieces(mesh) or is_watertight(mesh) > is_watertight(found):
        return Simplified(mesh, 0.0, f"not simplified: with {target:,} of {before:,} faces it would no longer hang together as it does")
    if len(found.faces) == before:
        return Simplified(mesh, 0.0, f"not simplified: no edge of its {before:,} faces can go, or one of them has more than two faces")
    moved = max(unsigned_distance(mesh, _places(found)).max(), unsigned_distance(found, mesh.vertices).max())
    more = f", not to {target:,}: fewer would close a hole or lose a piece" if len(found.faces) > target else ""
    return Simplified(found, float(moved), f"simplified from {before:,} faces{more}, which moved the surface by up to {moved:.3g} {units}")


def _pieces(mesh: Mesh) -> int:
    return int(components(mesh).max()) + 1


def _places(mesh: Mesh) -> NDArray[np.float64]:
    """The vertices, and the middles of faces and edges (N, 3)."""
    corners = mesh.vertices[mesh.faces]
    return np.concatenate((mesh.vertices, corners.mean(1), *((corners[:, i] + corners[:, i - 1]) / 2 for i in range(3))))
