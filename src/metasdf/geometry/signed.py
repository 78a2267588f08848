"""The signed distance function of any triangle mesh, with holes, flipped, doubled and missing faces: how far, and inside or outside.

Distance and sign are separate questions. The sign (see `sign`) decides what is inside; the surface is the part of the faces where inside ends.
Faces with inside on both sides, parts within parts and the ends of parts that reach into others, are no surface and do not count for the
distance. Faces with outside on both sides are sheets: the distance to them is never negative, unless they are given a thickness.
Faces without area, or narrower than 1e-7 of the mesh's size, do not count.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metasdf.errors import UsageError
from metasdf.geometry.mesh import Mesh, areas, concatenate, face_normals
from metasdf.geometry.native import Scene, Tree, points
from metasdf.geometry.pieces import cut, edges, soup, triangles_of
from metasdf.geometry.sign import BESIDE, Faces, Hollows, Sign, SignMethod, Visibility, Winding, choose, look_at, size_of

Floats = NDArray[np.float64]

COARSE, FINE = 1 / 16, 1 / 64  # edges of the pieces that faces are cut into to see where parts enter each other, in mesh sizes
_CENTRE, _CORNERS = np.full((1, 3), 1 / 3), 0.7 * np.eye(3) + 0.1  # where a piece's two sides are looked at


class MeshSDF:
    """`sdf(x)`: signed distances (N,) float64 at points x (N, 3), in the mesh's own units, negative inside, 0 on the surface.

    method, reason: how the sign is found and why, for the user. agreement, agreement_uniform: on which share of test points, near the surface
    and all over the bounding box, two independent methods find the same sign: the mesh's quality, 1 is best.
    solid, sheets: the faces that bound the inside, turned outwards, and those with outside on both sides; surface: both in one mesh.
    kind: "solid", "sheet" (nothing is inside: no distance is negative unless there is a thickness), or "mixed". solid_share: of the area.
    hollow: share of the bounding box that is outside but enclosed, unseen from anywhere: a cabinet's inside, a cavity.
    """

    def __init__(self, mesh: Mesh, *, sign: SignMethod = "auto", hollows: Hollows = "keep", thickness: float = 0.0) -> None:
        """hollows: "fill" makes them inside, as DeepSDF's data have it; by sign="visibility" they always are. thickness: how much is added to
        sheets on each side, in the mesh's units. Raises InputError, UsageError."""
        if not 0 <= thickness < np.inf:
            raise UsageError("A thickness is a length, zero or more", where=f"thickness={thickness}")
        faces = look_at(mesh)
        self.thickness = thickness
        self._sign, self.method, self.reason, self.agreement, self.agreement_uniform, self.hollow = choose(faces, sign, hollows=hollows)
        self.solid, self.sheets = split(faces, self._sign)
        self.surface = concatenate((self.solid, self.sheets))
        self.solid_share = float(areas(self.solid).sum() / areas(self.surface).sum())
        self.kind: Literal["solid", "sheet", "mixed"] = "solid" if self.solid_share > 0.999 else "mixed" if len(self.solid.faces) else "sheet"
        self._tree = Tree(self.surface)
        self._sheets = Tree(self.sheets) if thickness and len(self.sheets.faces) else None

    def __call__(self, x: ArrayLike) -> Floats:
        x = points(x)
        s = np.sqrt(self._tree.closest(x).squared)
        if self.kind != "sheet":
            s = np.where(self._sign.inside(x), -s, s) + 0.0  # no negative zeros
        return s if self._sheets is None else np.minimum(s, np.sqrt(self._sheets.closest(x).squared) - self.thickness)


def sdf_from_mesh(mesh: Any, *, sign: SignMethod = "auto", hollows: Hollows = "keep", thickness: float = 0.0) -> MeshSDF:
    """The signed distance function of a mesh: a path to a file, a pair (vertices, faces), or anything with `.vertices` and `.faces`. Options
    are those of `MeshSDF`.

    Raises InputError if it has no surface or cannot be read, UsageError if it is something else.
    """
    if isinstance(mesh, str | Path):
        from metasdf.geometry.io import read_mesh  # here, because its readers are not needed by those who have a mesh

        mesh = read_mesh(Path(mesh))
    if hasattr(mesh, "vertices") and hasattr(mesh, "faces"):
        mesh = mesh.vertices, mesh.faces
    if not isinstance(mesh, tuple | list) or len(mesh) != 2:
        raise UsageError("A mesh is a path, a pair (vertices, faces), or something that has both", where=f"a {type(mesh).__name__}")
    return MeshSDF(Mesh(np.asarray(mesh[0]), np.asarray(mesh[1])), sign=sign, hollows=hollows, thickness=thickness)


def split(given: Faces, sign: Sign) -> tuple[Mesh, Mesh]:
    """The faces where inside ends, turned outwards, and the sheets; by winding numbers, faces with inside on both sides are left out.
    Where a large face is several of these it is cut, so its parts are right to 1/64 of the mesh's size."""
    if isinstance(sign, Winding) and sign.simple:
        return sign.mesh, soup(np.zeros((0, 3, 3)))
    size = size_of(given.mesh)
    pieces, face = cut(triangles_of(given.mesh), COARSE * size)
    large = edges(pieces).max(1) > FINE * size
    found = _sides(pieces[large], face[large], given, sign, places=_CORNERS)
    mixed = (found != found[:, :1]).any(1)
    parts, piece = cut(pieces[large][mixed], FINE * size)
    small, face = np.concatenate((pieces[~large], parts)), np.concatenate((face[~large], face[large][mixed][piece]))
    triangles = np.concatenate((pieces[large][~mixed], small))
    kind = np.concatenate((found[~mixed, 0], _sides(small, face, given, sign, places=_CENTRE)[:, 0]))
    if isinstance(sign, Visibility) or (kind == _WITHIN).all():
        kind[kind == _WITHIN] = _OUTWARDS  # it errs beside single faces, and none should be lost
    solid = np.concatenate((triangles[kind == _OUTWARDS], triangles[kind == _INWARDS][:, ::-1]))
    return soup(solid), soup(triangles[kind == _SHEET])


_SHEET, _OUTWARDS, _INWARDS, _WITHIN = range(4)


def _sides(pieces: Floats, face: NDArray[np.int64], given: Faces, sign: Sign, *, places: Floats) -> NDArray[np.int64]:
    """What is on the two sides of pieces (N, 3, 3) of some faces (N,), at places (P, 3) in barycentric coordinates: (N, P) of the kinds above."""
    x, face = np.einsum("pc,ncd->npd", places, pieces).reshape(-1, 3), np.repeat(face, len(places))
    beside = BESIDE * size_of(given.mesh) * face_normals(given.mesh)[face]
    front, back = (_inside_along(x + side, face, given.scene, sign) for side in (beside, -beside))
    return (back + 2 * front).reshape(-1, len(places))


def _inside_along(x: Floats, face: NDArray[np.int64], scene: Scene, sign: Sign) -> NDArray[np.bool_]:
    """`sign.inside` of points (N, 3), each beside a face (N,) on the same side: what the first one of a face sees, with no other face between,
    is as it is. A ray costs a hundredth of a winding number."""
    first, index = np.unique(face, return_index=True, return_inverse=True)[1:]
    start = first[index.ravel()]
    result = np.zeros(len(x), np.bool_)
    result[first] = sign.inside(x[first])
    others = np.flatnonzero(start != np.arange(len(x)))
    way = x[others] - x[start[others]]
    seen = scene.first_hits(x[start[others]], way).distance > np.linalg.norm(way, axis=1)
    result[others[seen]] = result[start[others[seen]]]
    result[others[~seen]] = sign.inside(x[others[~seen]])
    return result
