"""Polygons -> triangles, as every reader of mesh files needs it.

Cutting each polygon as a fan is wrong for concave ones: the fan covers what lies outside, and a distance to that is a distance to nothing.
So: triangles stay; of a quadrilateral the diagonal is chosen that lies inside; convex polygons are fans; the others lose ear after ear.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metasdf.errors import InputError
from metasdf.geometry.mesh import LARGEST, Mesh

MAX_CONCAVE_CORNERS = 4096  # ear clipping takes time with the square: about 10 s at this size
_FLAT = 1e-12  # turns below it, relative to the polygon's size, are straight
_PATIENCE = 4  # a polygon that crosses itself has no right answer: after so many corners without an ear, any corner will do


def mesh_from_polygons(vertices: NDArray[np.float64], corners: ArrayLike, sizes: ArrayLike, *, where: object = "") -> Mesh:
    """Polygons as triangles: `corners` (C,) holds the vertex numbers of all polygons one after the other, `sizes` (P,) how many each has.

    Polygons with fewer than three corners are points and lines, which have no surface: they are left out. Triangles keep the sense of
    rotation of their polygon. Raises InputError for numbers out of range, used vertices that are not finite, and concave polygons with
    more than 4,096 corners.
    """
    corners, sizes = np.asarray(corners, np.int64), np.asarray(sizes, np.int64)
    vertices = np.asarray(vertices, np.float64).reshape(-1, 3)
    bad = (corners < 0) | (corners >= len(vertices))
    if bad.any():
        raise InputError(f"A face names vertex {corners[bad][0]}, but there are {len(vertices):,}, from 0", where=where, cause="damaged",
                         fix="export the mesh again")  # fmt: skip
    if not (np.abs(vertices[corners]) < LARGEST).all():
        raise InputError("A face uses a vertex that is not finite", where=where, cause="damaged, or a failed export", fix="export the mesh again")
    starts = np.cumsum(sizes) - sizes
    parts = [np.zeros((0, 3), np.int64)]
    for size in np.unique(sizes[sizes >= 3]):
        polygons = corners[starts[sizes == size][:, None] + np.arange(size)]
        parts.append(_triangles(vertices, polygons, where=where))
    return Mesh(vertices, np.concatenate(parts))


def _triangles(vertices: NDArray[np.float64], polygons: NDArray[np.int64], *, where: object) -> NDArray[np.int64]:
    """(P, k) corners -> (P * (k - 2), 3), with the same k for all."""
    count, size = polygons.shape
    if size == 3:
        return polygons
    points = vertices[polygons]
    points = points - points.mean(1, keepdims=True)
    extent = np.abs(points).max((1, 2), keepdims=True)
    points /= np.where(extent > 0, extent, 1)
    normals = np.cross(points, np.roll(points, -1, 1)).sum(1)  # Newell's: the area's direction, also of concave and warped polygons
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    if size == 4:
        return _split_quadrilaterals(points, normals, polygons)
    sides = np.roll(points, -1, 1) - points
    turns = np.einsum("pkd,pd->pk", np.cross(np.roll(sides, 1, 1), sides), normals)
    concave = (turns <= _FLAT).any(1) & (normals != 0).any(1)
    fan = np.stack([np.zeros(size - 2, np.int64), np.arange(1, size - 1), np.arange(2, size)], 1)
    faces = polygons[:, fan]  # (P, k - 2, 3)
    if concave.any() and size > MAX_CONCAVE_CORNERS:
        raise InputError(f"A concave polygon has {size:,} corners; at most {MAX_CONCAVE_CORNERS:,} can be cut into triangles", where=where,
                         fix="export the mesh as triangles")  # fmt: skip
    for p in np.flatnonzero(concave):
        # Seen along its largest component, the normal's polygon keeps most of its area; the order of the axes keeps it counter-clockwise.
        axis = int(np.abs(normals[p]).argmax())
        u, v = (axis + 1) % 3, (axis + 2) % 3
        flat = points[p][:, [u, v] if normals[p, axis] > 0 else [v, u]]
        faces[p] = polygons[p][np.array(clip_ears(flat.tolist()))]
    return faces.reshape(count * (size - 2), 3)


def _split_quadrilaterals(points: NDArray[np.float64], normals: NDArray[np.float64], polygons: NDArray[np.int64]) -> NDArray[np.int64]:
    """Along the first diagonal, as everyone does, unless only the second lies inside: (P, 4) -> (2 P, 3)."""

    def smaller(split: list[list[int]]) -> NDArray[np.float64]:
        a, b, c = (points[:, [triangle[i] for triangle in split]] for i in range(3))
        return np.asarray(np.einsum("pkd,pd->pk", np.cross(b - a, c - a), normals).min(1))

    first, second = [[0, 1, 2], [0, 2, 3]], [[1, 2, 3], [1, 3, 0]]
    a, b = smaller(first), smaller(second)
    other = (a <= _FLAT) & (b > a)
    return np.where(other[:, None, None], polygons[:, second], polygons[:, first]).reshape(-1, 3)


def clip_ears(points: Sequence[Sequence[float]]) -> list[tuple[int, int, int]]:
    """Corner numbers of the n - 2 triangles that fill a counter-clockwise polygon in the plane, given by n points (x, y) of size about 1.

    An ear is a corner that turns left and whose triangle holds no corner that does not. Every simple polygon has one until it is a
    triangle; holes joined to the outline by a double edge are fine. A polygon that crosses itself comes out somehow.
    """
    n = len(points)
    after, before = [*range(1, n), 0], [n - 1, *range(n - 1)]

    def turn(a: int, b: int, c: int) -> float:
        (ax, ay), (bx, by), (cx, cy) = points[a], points[b], points[c]
        return (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)

    blockers = {i for i in range(n) if turn(before[i], i, after[i]) <= _FLAT}

    coordinates = np.array(points)

    def is_ear(b: int) -> bool:
        a, c = before[b], after[b]
        if b in blockers:
            return False
        own = (points[a], points[b], points[c])  # by place: a double edge has two corners in one place
        near: Iterable[int] = blockers
        if len(blockers) > 32:  # many: let numpy drop those outside the triangle's box
            those = np.fromiter(blockers, np.int64, len(blockers))
            there = coordinates[those]
            near = those[((there >= np.min(own, 0)) & (there <= np.max(own, 0))).all(1)].tolist()
        return not any(turn(a, b, p) >= 0 and turn(b, c, p) >= 0 and turn(c, a, p) >= 0 and points[p] not in own for p in near)

    ears, triangles, patience, alive = deque(range(n)), [], _PATIENCE, dict.fromkeys(range(n))
    searched = False
    while len(alive) > 3:
        if ears:
            b = ears.popleft()
            if b not in alive or not is_ear(b):
                continue
        elif not searched and patience:
            ears.extend(alive)  # an ear may open far from where the last one was cut
            searched = True
            continue
        else:
            b = next(iter(alive))
            patience = max(patience - 1, 0)
        searched = False
        a, c = before[b], after[b]
        triangles.append((a, b, c))
        del alive[b]
        blockers.discard(b)
        after[a], before[c] = c, a
        for i in (a, c):
            (blockers.add if turn(before[i], i, after[i]) <= _FLAT else blockers.discard)(i)
            ears.append(i)
    b = next(iter(alive))
    return [*triangles, (before[b], b, after[b])]
