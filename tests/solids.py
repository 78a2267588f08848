"""Meshes of known solids, the defects that real meshes have, and the distance to a mesh in the plainest form: for the tests of geometry."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from metasdf.geometry.mesh import Mesh, concatenate

Floats = NDArray[np.float64]


def box(*, size: Sequence[float] = (1, 1, 1), centre: Sequence[float] = (0, 0, 0), cuts: int = 1) -> Mesh:
    """An axis-aligned box, each side a grid of cuts x cuts squares; 12 cuts^2 faces, outwards."""
    grid = np.linspace(-0.5, 0.5, cuts + 1)
    sides = []
    for axis in range(3):
        for end in (-0.5, 0.5):
            u, v = np.meshgrid(grid, grid, indexing="ij")
            corners = np.empty((cuts + 1, cuts + 1, 3))
            corners[..., axis], corners[..., (axis + 1) % 3], corners[..., (axis + 2) % 3] = end, u, v
            sides.append(sheet(corners, turned=end < 0))
    merged = concatenate(sides)
    vertices, index = np.unique(merged.vertices, axis=0, return_inverse=True)
    return Mesh(vertices * size + centre, index.ravel()[merged.faces])


def sheet(corners: Floats, *, turned: bool = False) -> Mesh:
    """The triangles of a grid of points (m, n, 3)."""
    m, n = corners.shape[:2]
    index = np.arange(m * n).reshape(m, n)
    a, b, c, d = (part.ravel() for part in (index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]))
    faces = np.concatenate((np.stack((a, b, c), 1), np.stack((a, c, d), 1)))
    return Mesh(corners.reshape(-1, 3), faces[:, ::-1] if turned else faces)


def ball(subdivisions: int, *, radius: float = 1.0, centre: Sequence[float] = (0, 0, 0)) -> Mesh:
    """20 * 4^subdivisions faces, outwards; corners on the sphere."""
    t = (1 + 5**0.5) / 2
    vertices = np.array([(0, a, b * t) for a in (-1, 1) for b in (-1, 1)] + [(a, b * t, 0) for a in (-1, 1) for b in (-1, 1)]
                        + [(b * t, 0, a) for a in (-1, 1) for b in (-1, 1)], np.float64)  # fmt: skip
    near = np.abs(((vertices[:, None] - vertices) ** 2).sum(-1) - 4) < 1e-9
    triples = np.array([(i, j, k) for i in range(12) for j in range(i) for k in range(j) if near[i, j] and near[j, k] and near[i, k]])
    inwards = np.linalg.det(vertices[triples]) < 0
    faces = np.where(inwards[:, None], triples[:, ::-1], triples)
    for _ in range(subdivisions):
        a, b, c = (vertices[column] for column in faces.T)
        quarters = ((a, a + b, a + c), (b, b + c, b + a), (c, c + a, c + b), (a + b, b + c, c + a))
        corners = np.concatenate([np.stack(quarter, 1) for quarter in quarters]).reshape(-1, 3)
        corners /= np.linalg.norm(corners, axis=1, keepdims=True)
        _, first, index = np.unique(corners.round(9), axis=0, return_index=True, return_inverse=True)
        vertices, faces = corners[first], index.reshape(-1, 3)
    return Mesh(vertices / np.linalg.norm(vertices, axis=1, keepdims=True) * radius + centre, faces)


def torus(m: int = 64, n: int = 32, *, major: float = 1.0, minor: float = 0.35) -> Mesh:
    """2 m n faces, outwards, around the z axis."""
    u, v = np.meshgrid(2 * np.pi * np.arange(m) / m, 2 * np.pi * np.arange(n) / n, indexing="ij")
    r = major + minor * np.cos(v)
    mesh = sheet(np.pad(np.stack((r * np.cos(u), r * np.sin(u), minor * np.sin(v)), -1), ((0, 1), (0, 1), (0, 0)), mode="wrap"))
    index = (np.arange(m + 1) % m)[:, None] * n + np.arange(n + 1) % n
    return Mesh(np.stack((r * np.cos(u), r * np.sin(u), minor * np.sin(v)), -1).reshape(-1, 3), index.ravel()[mesh.faces])


def capsule(subdivisions: int, *, length: float = 2.0, radius: float = 0.5) -> Mesh:
    """A ball pulled apart along z: half balls at both ends of a cylinder."""
    mesh = ball(subdivisions, radius=radius)
    vertices = mesh.vertices + np.where(mesh.vertices[:, 2:] > 1e-9, 1, -1) * np.array([0, 0, length / 2])
    return Mesh(vertices, mesh.faces)


def cup(n: int = 48, *, wall: float = 0.1) -> Mesh:
    """A deep cup: its inner wall sees little of the sky. A closed profile, turned around the z axis."""
    profile = np.array([(0, 0), (0.5, 0), (0.5, 1.2), (0.5 - wall, 1.2), (0.5 - wall, wall), (0, wall)])
    steps = np.concatenate([np.linspace(a, b, 9)[:-1] for a, b in pairwise(profile)] + [profile[-1:]])
    angle = 2 * np.pi * np.arange(n + 1) / n
    corners = np.stack((steps[:, :1] * np.cos(angle), steps[:, :1] * np.sin(angle), np.broadcast_to(steps[:, 1:], (len(steps), n + 1))), -1)
    return sheet(corners, turned=True)


def joined(*meshes: Mesh) -> Mesh:
    return concatenate(meshes)


# -- defects ---------------------------------------------------------------------------------------------------------------------------


def without(mesh: Mesh, share: float, *, seed: int = 0) -> Mesh:
    return Mesh(mesh.vertices, mesh.faces[np.random.default_rng(seed).random(len(mesh.faces)) >= share])


def flipped(mesh: Mesh, share: float, *, seed: int = 1) -> Mesh:
    some = np.random.default_rng(seed).random(len(mesh.faces)) < share
    return Mesh(mesh.vertices, np.where(some[:, None], mesh.faces[:, ::-1], mesh.faces))


def double_sided(mesh: Mesh, share: float = 1.0, *, seed: int = 2) -> Mesh:
    some = np.random.default_rng(seed).random(len(mesh.faces)) < share
    return Mesh(mesh.vertices, np.concatenate((mesh.faces, mesh.faces[some][:, ::-1])))


def duplicated(mesh: Mesh, share: float, *, seed: int = 3) -> Mesh:
    some = np.random.default_rng(seed).random(len(mesh.faces)) < share
    return Mesh(mesh.vertices, np.concatenate((mesh.faces, np.roll(mesh.faces[some], 1, 1))))


def soup(mesh: Mesh) -> Mesh:
    """Every face with corners of its own, in any order, as files without indices have it."""
    order = np.random.default_rng(4).permutation(len(mesh.faces))
    return Mesh(mesh.vertices[mesh.faces[order]].reshape(-1, 3), np.arange(3 * len(order)).reshape(-1, 3))


def shaken(mesh: Mesh, by: float) -> Mesh:
    """A soup whose faces no longer know their neighbours: no two corners are the same."""
    mesh = soup(mesh)
    return Mesh(mesh.vertices + np.random.default_rng(5).normal(0, by, mesh.vertices.shape), mesh.faces)


DEFECTS = {
    "none": lambda mesh: mesh,
    "10 % missing": lambda mesh: without(mesh, 0.1),
    "20 % flipped": lambda mesh: flipped(mesh, 0.2),
    "double-sided": double_sided,
    "30 % duplicated": lambda mesh: duplicated(mesh, 0.3),
    "a soup": soup,
    "all at once": lambda mesh: soup(duplicated(double_sided(flipped(without(mesh, 0.1), 0.2), 0.5), 0.3)),
}


# -- the plain form --------------------------------------------------------------------------------------------------------------------


def brute_force(mesh: Mesh, x: Floats) -> Floats:
    """Distance (N,) from x (N, 3) to every face, the least of them: to the plane where the foot is within the face, and to the three edges."""
    a, b, c = (mesh.vertices[column] for column in mesh.faces.T)
    p = x[:, None]
    best = np.full((len(x), len(a)), np.inf)
    for start, end in ((a, b), (b, c), (c, a)):
        edge = end - start
        length = (edge**2).sum(-1)
        t = np.clip(((p - start) * edge).sum(-1) / np.where(length > 0, length, 1), 0, 1)
        best = np.minimum(best, np.linalg.norm(p - start - t[..., None] * edge, axis=-1))
    normal = np.cross(b - a, c - a)
    twice = np.linalg.norm(normal, axis=-1)
    unit = normal / np.where(twice > 0, twice, 1)[:, None]
    height = ((p - a) * unit).sum(-1)
    foot = p - height[..., None] * unit
    within = np.all([(np.cross(v - u, foot - u) * unit).sum(-1) >= 0 for u, v in ((a, b), (b, c), (c, a))], 0) & (twice > 0)
    return np.where(within, np.abs(height), best).min(1)
