"""The one door to native geometry libraries: libigl (closest point, winding number, patches, marching cubes,
edge collapse) and Embree (rays).

They read past the end of arrays of a wrong shape and end the interpreter, so all they get is made here: checked, contiguous, of the dtype
they were compiled for. And Embree and the fast winding number compute in float32, so a mesh is first moved to the origin and scaled to size 1,
in float64: georeferenced coordinates keep their digits. What goes in and comes out is in the caller's own units.

libigl takes its number of threads from the environment variable IGL_NUM_THREADS when it first needs it; all cores otherwise.
"""

from __future__ import annotations

from typing import NamedTuple

import igl
import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from numpy.typing import ArrayLike, NDArray

from metasdf.errors import InputError
from metasdf.geometry.frame import Frame
from metasdf.geometry.mesh import Mesh, bounds, check

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
CHUNK = 1 << 17  # points a native call sees at once: what it allocates stays below some 20 MB
_FAR = 1e9  # in mesh sizes: what is further off is only as far as float32 rays reach


class Closest(NamedTuple):
    squared: Floats  # (N,) squared distances
    face: Ints  # (N,) the nearest face
    point: Floats  # (N, 3) the nearest point on it


class Hits(NamedTuple):
    distance: Floats  # (N,) to the first face along the ray, inf if it meets none
    face: Ints  # (N,) that face, -1 if none


class Tree:
    """Closest points on a mesh, by libigl's tree of boxes: float64 throughout. Built once, in time F log F."""

    def __init__(self, mesh: Mesh) -> None:
        mesh = check(mesh)
        self._frame = unit_frame(mesh)
        self._vertices, self._faces = _packed(mesh, self._frame)
        self._tree = igl.AABB()
        self._tree.init(self._vertices, self._faces)

    def closest(self, x: ArrayLike) -> Closest:
        x = points(x)
        squared, face, point = np.empty(len(x)), np.empty(len(x), np.int64), np.empty((len(x), 3))
        for part in neighbours(x):
            squared[part], face[part], point[part] = self._tree.squared_distance(self._vertices, self._faces, self._frame.to_field(x[part]))
        return Closest(squared / self._frame.scale**2, face, self._frame.from_field(point))


class Scene:
    """Rays against a mesh, by Embree: float32 in units of the mesh's size, so distances are good to about 1e-6 of it."""

    def __init__(self, mesh: Mesh) -> None:
        mesh = check(mesh)
        self._frame = unit_frame(mesh)
        vertices, faces = _packed(mesh, self._frame)
        self._scene = EmbreeScene(robust=True)  # robust: no ray slips through between two faces
        self._mesh = TriangleMesh(self._scene, vertices.astype(np.float32), faces.astype(np.int32))

    def first_hits(self, origins: ArrayLike, directions: ArrayLike) -> Hits:
        """Where rays from origins (N, 3) in directions (N, 3) of any length but zero first meet a face, seen from either side."""
        origins, directions = self._rays(origins, directions)
        distance, face = np.empty(len(origins)), np.empty(len(origins), np.int64)
        for part in chunks(len(origins)):
            found = self._scene.run(self._local(origins[part]), directions[part], output=True)
            face[part] = found["primID"]
            distance[part] = np.where(face[part] < 0, np.inf, found["tfar"])
        return Hits(distance / self._frame.scale, face)

    def blocked(self, origins: ArrayLike, directions: ArrayLike) -> NDArray[np.bool_]:
        """Whether rays meet any face at all (N,): faster than the first one."""
        origins, directions = self._rays(origins, directions)
        result = np.empty(len(origins), np.bool_)
        for part in chunks(len(origins)):
            result[part] = self._scene.run(self._local(origins[part]), directions[part], query="OCCLUDED") >= 0
        return result

    def _rays(self, origins: ArrayLike, directions: ArrayLike) -> tuple[Floats, NDArray[np.float32]]:
        origins, directions = points(origins), points(directions)
        lengths = np.linalg.norm(directions, axis=1, keepdims=True)
        if len(origins) != len(directions) or not (lengths > 0).all():
            raise InputError("Every ray needs an origin and a direction", where=f"{len(origins)} origins, {len(directions)} directions",
                             cause="directions of length zero, or numbers that do not match")  # fmt: skip
        return origins, (directions / lengths).astype(np.float32)

    def _local(self, origins: Floats) -> NDArray[np.float32]:
        return np.clip(self._frame.to_field(origins), -_FAR, _FAR).astype(np.float32)


class WindingNumber:
    """The generalized winding number of an oriented mesh, by Barill et al. 2018: 1 inside a closed mesh whose normals point outwards, 0 outside,
    fractions where it is open; good to about 0.02. libigl builds its tree anew on each call, at the cost of some thousand points."""

    def __init__(self, mesh: Mesh) -> None:
        mesh = check(mesh)
        self._frame = unit_frame(mesh)
        self._vertices, self._faces = _packed(mesh, self._frame)

    def __call__(self, x: ArrayLike) -> Floats:
        x = points(x)
        result = np.empty(len(x))
        for part in neighbours(x):
            result[part] = igl.fast_winding_number(self._vertices, self._faces, np.clip(self._frame.to_field(x[part]), -_FAR, _FAR))
        return result


def winding_number(mesh: Mesh, x: ArrayLike) -> Floats:
    """`WindingNumber` (N,) of one mesh at x (N, 3), once."""
    return WindingNumber(mesh)(x)


def coherent(mesh: Mesh) -> tuple[Ints, Ints]:
    """Faces (F, 3) turned so that neighbours agree, and the patch (F,) each is in: patches meet at edges of three and more faces, at single
    corners, or not at all. A patch as a whole may still face inwards; one that cannot agree, like a Möbius strip, is cut somewhere."""
    mesh = check(mesh)
    faces, patch = igl.bfs_orient(np.ascontiguousarray(mesh.faces))
    return faces, patch


def marching_cubes(values: ArrayLike, x: ArrayLike, cells: ArrayLike) -> Mesh:
    """The surface between negative and other values (P,) at the corners x (P, 3) of cubic cells (C, 8), numbers of their corners: those at
    (0, 0, 0), (0, 0, 1), (0, 1, 0) and so on. One vertex for each edge with a change of sign, faces outwards: closed, but for a border where no
    cell goes on. Raises InputError."""
    values, x, cells = np.ascontiguousarray(values, np.float64), points(x), np.asarray(cells)
    if values.shape != (len(x),) or not np.isfinite(values).all():
        raise InputError("Every corner needs one finite value", where=f"{len(x)} corners, values of shape {values.shape}")
    if cells.ndim != 2 or cells.shape[1] != 8 or cells.dtype.kind not in "iu" or (len(cells) and not 0 <= cells.min() <= cells.max() < len(x)):
        raise InputError("Cells must be an array of corner numbers with eight columns", where=f"shape {cells.shape}, {cells.dtype}, {len(x)} corners")
    if not len(cells):
        return Mesh(np.zeros((0, 3)), np.zeros((0, 3), np.int64))
    around = np.ascontiguousarray(cells[:, [0, 4, 6, 2, 1, 5, 7, 3]], np.int64)  # libigl goes around one side, then around the opposite one
    vertices, faces, _ = igl.marching_cubes(values, x, around)
    return Mesh(vertices, faces)


def collapsed(mesh: Mesh, faces: int) -> Mesh:
    """The mesh with about so many faces, by collapsing the edges that cost least in squared distance to the planes of the faces around (Garland
    and Heckbert 1997). No collapse changes how the surface hangs together, so some faces more may be left. An edge in three faces or more is not
    borne, and the mesh comes back as it is. Seconds for 100,000 faces."""
    mesh = check(mesh)
    frame = unit_frame(mesh)
    vertices, corners = np.asfortranarray(frame.to_field(mesh.vertices)), np.asfortranarray(mesh.faces, np.int32)
    found, kept, _, _ = igl.qslim(vertices, corners, faces)
    return Mesh(frame.from_field(found), np.ascontiguousarray(kept)) if len(kept) else mesh


def unit_frame(mesh: Mesh) -> Frame:
    """Centre and scale of a checked mesh: its bounding box ends up around the origin, the longest side 1."""
    low, high = bounds(mesh)
    return Frame(tuple(((low + high) / 2).tolist()), float(1 / (high - low).max()))


def points(x: ArrayLike) -> Floats:
    """x as contiguous float64 (N, 3), all finite. Raises InputError."""
    array = np.asarray(x)
    if array.ndim != 2 or array.shape[1] != 3 or array.dtype.kind not in "fiu":
        raise InputError("Points must be an array of numbers with three columns", where=f"shape {array.shape}, dtype {array.dtype}",
                         cause="one point alone, or points in the plane", fix="give shape (N, 3)")  # fmt: skip
    array = np.ascontiguousarray(array, np.float64)
    if not np.isfinite(array).all():
        raise InputError(f"{(~np.isfinite(array).all(1)).sum():,} of {len(array):,} points are not finite", cause="NaN or infinity in the data")
    return array


def chunks(n: int) -> list[slice]:
    return [slice(start, start + CHUNK) for start in range(0, n, CHUNK)]


def neighbours(x: Floats) -> list[Ints]:
    """Numbers of the points in chunks, along a Z-order curve: one after the other asks for almost the same nodes of a tree, which are then in
    the processor's cache. Closest points come twice as fast, winding numbers by a quarter."""
    if not len(x):
        return []
    low, high = x.min(0), x.max(0)
    cell = ((x - low) * (1023 / ((high - low).max() or 1.0))).astype(np.int64)
    key = np.zeros(len(x), np.int64)
    for bit in range(10):
        for axis in range(3):
            key |= (cell[:, axis] >> bit & 1) << (3 * bit + axis)
    order = np.argsort(key, kind="stable")
    return [order[part] for part in chunks(len(x))]


def _packed(mesh: Mesh, frame: Frame) -> tuple[Floats, Ints]:
    return np.ascontiguousarray(frame.to_field(mesh.vertices)), np.ascontiguousarray(mesh.faces)
