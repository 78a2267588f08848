"""Solids as unions of convex hulls, and their exact signed distance. The one place that knows manifold3d.

The smaller of two exact signed distances is the exact one of their union outside it only: inside, where the parts overlap, the nearest
point of a part's surface may lie within the other part, and the minimum claims less depth than there is. So the distance is measured to the
boolean union's surface, whose triangles hold no such hidden point, and the sign is that of the parts: inside a union is inside any part, and
a hull is an intersection of half-spaces. Both are closed forms, so the result is exact to rounding on both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import manifold3d
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull, QhullError

from metasdf.errors import InputError
from metasdf.geometry.mesh import Mesh, concatenate
from metasdf.geometry.native import Tree

Floats = NDArray[np.float64]

LEAF = 1e-12  # a piece of less than this part of the whole's volume is rounding


def union_of_hulls(parts: Iterable[NDArray[np.floating]]) -> Mesh:
    """The boolean union of the convex hulls of point sets (n, 3): watertight, faces oriented outwards, no face inside.

    Parts that only touch are joined where their faces coincide; let them overlap where it matters. Raises InputError for fewer than four
    points, points that are not finite or lie in one plane, and for no parts at all."""
    return _solid([_hull(points) for points in parts])


def union(meshes: Sequence[Mesh]) -> Mesh:
    """The boolean union of closed meshes whose faces are oriented outwards. Raises InputError for a mesh that encloses no volume, is not
    closed, or whose faces point at vertices that do not exist."""
    return _solid([_closed(mesh) for mesh in meshes])


def inside_of_hulls(parts: Iterable[NDArray[np.floating]]) -> Callable[[NDArray[np.floating]], NDArray[np.bool_]]:
    """Which points (N, 3) lie strictly inside the convex hull of any part: -> (N,) bool. Raises InputError as `union_of_hulls`."""
    hulls = [(points.min(0), points.max(0), _planes(points)) for points in map(_points, parts)]

    def inside(x: NDArray[np.floating]) -> NDArray[np.bool_]:
        found = np.zeros(len(x), np.bool_)
        for low, high, planes in hulls:
            near = np.flatnonzero(~found & ((x > low) & (x < high)).all(1))
            found[near] = (x[near] @ planes[:, :3].T + planes[:, 3] < 0).all(1)
        return found

    return inside


def sdf_of_hulls(parts: Sequence[NDArray[np.floating]]) -> Callable[[NDArray[np.floating]], Floats]:
    """The exact signed distance of the union of the parts' hulls, negative inside: (N, 3) -> (N,). Raises InputError as `union_of_hulls`."""
    tree, inside = Tree(union_of_hulls(parts)), inside_of_hulls(parts)
    return lambda x: np.sqrt(tree.closest(x).squared) * np.where(inside(x), -1, 1)


def _points(points: NDArray[np.floating]) -> Floats:
    array = np.ascontiguousarray(points, np.float64)
    if array.ndim != 2 or array.shape[1] != 3 or len(array) < 4 or not np.isfinite(array).all():
        raise InputError("A convex part needs at least four finite points in space", where=f"shape {array.shape}", fix="pass an (n, 3) array")
    return array


def _planes(points: Floats) -> Floats:
    """Half-spaces n.x + d <= 0 whose intersection is the hull, rows (n, d) with |n| = 1."""
    try:
        return ConvexHull(points).equations
    except QhullError as error:
        raise InputError("A convex part has no volume", cause="all its points lie in one plane", fix="give it thickness") from error


def _hull(points: NDArray[np.floating]) -> manifold3d.Manifold:
    solid = manifold3d.Manifold.hull_points(_points(points))
    if solid.is_empty() or not solid.volume() > 0:
        raise InputError("A convex part has no volume", cause="all its points lie in one plane", fix="give it thickness")
    return solid


def _closed(mesh: Mesh) -> manifold3d.Manifold:
    vertices, faces = np.ascontiguousarray(mesh.vertices, np.float64), np.asarray(mesh.faces)
    shapes = vertices.ndim == faces.ndim == 2 and vertices.shape[1] == faces.shape[1] == 3
    if not shapes or not len(faces) or faces.min() < 0 or faces.max() >= len(vertices) or not np.isfinite(vertices).all():
        raise InputError("A mesh cannot become a solid", where=f"vertices {vertices.shape}, faces {faces.shape}",
                         cause="no faces, vertices that are not finite, or faces that point at vertices that do not exist", fix="repair the mesh")
    solid = manifold3d.Manifold(manifold3d.Mesh64(vertices, np.ascontiguousarray(faces, np.uint64)))
    if solid.status() != manifold3d.Error.NoError or not solid.volume() > 0:
        raise InputError("A mesh cannot become a solid", where=solid.status().name, cause="it is not closed, or its faces point inwards",
                         fix="close it and orient its faces outwards")
    return solid


def _solid(parts: list[manifold3d.Manifold]) -> Mesh:
    if not parts:
        raise InputError("A solid needs at least one part", cause="an empty list", fix="pass the parts")
    whole = manifold3d.Manifold.batch_boolean(parts, manifold3d.OpType.Add)
    # Where borders of parts coincide, rounding may leave closed leaves without volume, which would be surface within the solid.
    pieces = [piece.to_mesh64() for piece in whole.decompose() if abs(piece.volume()) > LEAF * whole.volume()]
    return concatenate([Mesh(np.array(m.vert_properties[:, :3], np.float64), np.array(m.tri_verts, np.int64)) for m in pieces])
