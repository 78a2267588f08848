"""Triangle meshes as two arrays, and what preparation asks of them: is there a surface, which faces are worth keeping, what hangs together.

Nothing here moves a vertex: welding merges only corners that are exactly equal, so distances to the surface stay what the file says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from metasdf.errors import InputError

LARGEST = 1e100  # beyond it, squares and products of coordinates overflow
_FLAT = 2.0**-48  # a face lower than this part of its longest side is flat to rounding
_OTHER_PROGRAM = "open it in a modelling program, look at it, and export it again"


class Mesh(NamedTuple):
    """vertices (V, 3) float64 in the file's own units; faces (F, 3) int64 vertex numbers, any orientation, triangles only."""

    vertices: NDArray[np.float64]
    faces: NDArray[np.int64]


def check(mesh: Mesh, *, where: object = "") -> Mesh:
    """The mesh itself, as float64 and int64, if it is sound: finite vertices, faces that name them, at least one face with area.

    Native geometry code crashes on anything else, so every mesh passes here first. Raises InputError.
    """
    vertices, faces = np.asarray(mesh.vertices), np.asarray(mesh.faces)
    if vertices.ndim != 2 or vertices.shape[1] != 3 or vertices.dtype.kind not in "fiu":
        raise InputError("Vertices must be an array of numbers with three columns", where=where, cause=f"shape {vertices.shape}, {vertices.dtype}")
    if faces.ndim != 2 or faces.shape[1] != 3 or faces.dtype.kind not in "iu":
        raise InputError("Faces must be an array of vertex numbers with three columns", where=where, cause=f"shape {faces.shape}, {faces.dtype}",
                         fix="cut polygons into triangles first")  # fmt: skip
    if not len(faces):
        raise InputError("The mesh has no faces", where=where, cause="a point cloud, lines only, or an empty model", fix=_OTHER_PROGRAM)
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise InputError(f"A face names vertex {faces.min() if faces.min() < 0 else faces.max()}, but there are {len(vertices)}, from 0", where=where,
                         cause="damaged or incomplete", fix=_OTHER_PROGRAM)  # fmt: skip
    vertices = vertices.astype(np.float64, copy=False)
    bad = ~(np.abs(vertices) < LARGEST).all(1)
    if bad.any():
        raise InputError(f"{bad.sum():,} of {len(vertices):,} vertices are not finite, or beyond {LARGEST:g}", where=where,
                         cause=f"vertex {bad.argmax()} is {tuple(vertices[bad.argmax()].tolist())}", fix=_OTHER_PROGRAM)  # fmt: skip
    sound = Mesh(vertices, faces.astype(np.int64, copy=False))
    if _flat(sound).all():
        raise InputError(f"None of the {len(faces):,} faces has an area, so there is no surface", where=where,
                         cause="all corners of each face on one line or point", fix=_OTHER_PROGRAM)  # fmt: skip
    return sound


def bounds(mesh: Mesh) -> NDArray[np.float64]:
    """Lowest and highest corner of the bounding box, (2, 3), of the vertices that faces use."""
    used = mesh.vertices[mesh.faces.ravel()]
    return np.stack((used.min(0), used.max(0)))


def areas(mesh: Mesh) -> NDArray[np.float64]:
    """Area of each face (F,), in squared units of the file."""
    vectors, size = _crosses(mesh)
    return np.asarray(np.linalg.norm(vectors, axis=1) / 2 * size**2)


def face_normals(mesh: Mesh) -> NDArray[np.float64]:
    """Unit normal of each face (F, 3), by the right-hand rule; zero where the face has no area."""
    vectors, _ = _crosses(mesh)
    return np.asarray(vectors / _or_one(np.linalg.norm(vectors, axis=1, keepdims=True)))


def transform(mesh: Mesh, matrix: ArrayLike) -> Mesh:
    """The mesh under an affine (4, 4) matrix for column vectors. A reflection turns the faces around, so that outside stays outside."""
    m = np.asarray(matrix, np.float64)
    mirrored = np.linalg.det(m[:3, :3]) < 0
    return Mesh(mesh.vertices @ m[:3, :3].T + m[:3, 3], mesh.faces[:, ::-1] if mirrored else mesh.faces)


def concatenate(meshes: Sequence[Mesh]) -> Mesh:
    """All faces in one mesh, in order; an empty one for no meshes."""
    if not meshes:
        return Mesh(np.zeros((0, 3)), np.zeros((0, 3), np.int64))
    starts = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes)])
    faces = [mesh.faces + start for mesh, start in zip(meshes, starts[:-1], strict=True)]
    return Mesh(np.concatenate([mesh.vertices for mesh in meshes]), np.concatenate(faces))


def prune(mesh: Mesh) -> Mesh:
    """Without the vertices that no face uses; order kept."""
    used = np.zeros(len(mesh.vertices), np.bool_)
    used[mesh.faces.ravel()] = True
    return mesh if used.all() else Mesh(mesh.vertices[used], (np.cumsum(used) - 1)[mesh.faces])


def weld(mesh: Mesh) -> Mesh:
    """Vertices with exactly equal coordinates become one, the first of them; unused ones go. Faces keep number and order."""
    first = first_of_equal_rows(mesh.vertices + 0.0)  # -0.0 equals 0.0
    return prune(Mesh(mesh.vertices, first[mesh.faces]))


def clean(mesh: Mesh, *, coincident: bool = True) -> Mesh:
    """Welded, without the faces that add no surface: a repeated corner, or no area (to rounding).

    With `coincident`, of the faces on the same three corners, in any orientation, only the first stays: of a double-sided sheet, one side.
    The result may have no faces.
    """
    mesh = weld(mesh)
    keep = ~_flat(mesh)
    if coincident:
        corners = np.sort(mesh.faces, 1)
        first = first_of_equal_rows(corners)
        keep &= first == np.arange(len(first))
    return prune(Mesh(mesh.vertices, mesh.faces[keep]))


def components(mesh: Mesh) -> NDArray[np.int64]:
    """A number for each face (F,), from 0: faces that share a corner, welded, and so on, have the same."""
    mesh = weld(mesh)
    a, b, c = mesh.faces.T
    links = coo_matrix((np.ones(2 * len(a), np.bool_), (np.concatenate((a, b)), np.concatenate((b, c)))), shape=(len(mesh.vertices),) * 2)
    return connected_components(links, directed=False)[1][a].astype(np.int64)


def is_watertight(mesh: Mesh) -> bool:
    """Whether every edge of the welded mesh lies in exactly two faces; faces with a repeated corner do not count."""
    faces = weld(mesh).faces
    faces = faces[(faces != np.roll(faces, 1, 1)).all(1)]
    edges = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), 1)
    counts = np.unique(edges[:, 0] * (edges.max(initial=0) + 1) + edges[:, 1], return_counts=True)[1]
    return bool(len(counts) and (counts == 2).all())


def _crosses(mesh: Mesh) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cross product of two sides of each face (F, 3), with sides measured in units of about the longest one (F,), so that nothing underflows."""
    a, b, c = (mesh.vertices[column] for column in mesh.faces.T)
    size = _or_one(np.abs(np.stack((b - a, c - b, a - c))).max((0, 2), initial=0))
    return np.cross((b - a) / size[:, None], (c - a) / size[:, None]), size


def _flat(mesh: Mesh) -> NDArray[np.bool_]:
    """Faces (F,) whose height over their longest side is zero to rounding."""
    return np.asarray(np.linalg.norm(_crosses(mesh)[0], axis=1) <= _FLAT)


def _or_one(lengths: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(lengths > 0, lengths, 1.0)


def first_of_equal_rows(rows: NDArray[np.generic]) -> NDArray[np.int64]:
    """For each row (N, C), the number of the first row equal to it."""
    order = np.lexsort(rows.T)  # stable: equal rows stay in order
    new = np.ones(len(rows), np.bool_)
    new[1:] = (rows[order[1:]] != rows[order[:-1]]).any(1)
    first = np.empty(len(rows), np.int64)
    first[order] = order[new][np.cumsum(new) - 1]
    return first
