"""Points on, near and around a surface, as DeepSDF draws them, and what a depth camera sees of it. The same generator gives the same points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metasdf.errors import InputError, UsageError
from metasdf.geometry.mesh import Mesh, areas, bounds, face_normals
from metasdf.geometry.native import Scene

Floats = NDArray[np.float64]

# DeepSDF's preprocessing program (src/PreprocessMesh.cpp): of 500,000 samples 47/50 lie near the surface, half of them with variance 0.005 and
# half with 0.0005, the others uniform in the cube of side 2; the shape's farthest vertex is at 1/1.03 from the middle of its box. For the paper
# (Park et al. 2019) others quote variances 0.0025 and 0.00025, and uniform points from the unit sphere.
DEEPSDF_SPREADS = (0.005**0.5, 0.0005**0.5)
DEEPSDF_UNIFORM = 3 / 50


class SurfacePoints(NamedTuple):
    points: Floats  # (N, 3)
    normals: Floats  # (N, 3) of length 1
    faces: NDArray[np.int64]  # (N,) the face each point is on


class Samples(NamedTuple):
    x: Floats  # (N, 3)
    s: Floats  # (N,) signed distance


class SDF(Protocol):
    """A signed distance function and the surface it belongs to, like `MeshSDF`."""

    surface: Mesh

    def __call__(self, x: Floats, /) -> Floats: ...


def surface_points(mesh: Mesh, n: int, *, rng: np.random.Generator) -> SurfacePoints:
    """n points, uniform by area. Normals follow the faces' orientation. Raises InputError for a mesh without area."""
    cumulated = np.cumsum(areas(mesh))
    if not len(cumulated) or not cumulated[-1] > 0:
        raise InputError("The mesh has no area to draw points from", cause="no faces, or flat ones only")
    faces = np.searchsorted(cumulated, rng.random(n) * cumulated[-1], side="right").clip(max=len(cumulated) - 1)
    u, v = np.sort(rng.random((2, n)), axis=0)  # two cuts of [0, 1]: the three parts are uniform barycentric coordinates
    a, b, c = (mesh.vertices[column] for column in mesh.faces[faces].T)
    return SurfacePoints(a + v[:, None] * (b - a) + u[:, None] * (c - b), face_normals(mesh)[faces], faces)


def near_surface(mesh: Mesh, n: int, *, rng: np.random.Generator, spreads: Sequence[float] = DEEPSDF_SPREADS) -> Floats:
    """n points (n, 3): surface points, moved along each axis by Gaussian noise. Each spread (a standard deviation, in the mesh's units) gets an
    equal part of them, in order; the defaults are for shapes in the unit sphere."""
    if not spreads or min(spreads) < 0:
        raise UsageError("Spreads are standard deviations: at least one, none negative", where=f"spreads={tuple(spreads)}")
    sigma = np.repeat(spreads, [len(part) for part in np.array_split(np.arange(n), len(spreads))])
    return surface_points(mesh, n, rng=rng).points + sigma[:, None] * rng.standard_normal((n, 3))


def uniform(n: int, *, rng: np.random.Generator, extent: float = 1.0) -> Floats:
    """n points (n, 3), uniform in the cube [-extent, extent]^3."""
    return rng.uniform(-extent, extent, (n, 3))


def sdf_samples(sdf: SDF, n: int, *, rng: np.random.Generator, spreads: Sequence[float] = DEEPSDF_SPREADS, share: float = DEEPSDF_UNIFORM,
                extent: float = 1.0) -> Samples:  # fmt: skip
    """n signed distances as DeepSDF draws them, in the units of `sdf`, in which the shape should fill the cube [-extent, extent]^3: near the
    surface first, then a `share` of uniform ones. Both signs are there only if the points found both."""
    far = round(n * share)
    x = np.concatenate((near_surface(sdf.surface, n - far, rng=rng, spreads=spreads), uniform(far, rng=rng, extent=extent)))
    return Samples(x, sdf(x))


def depth_view(mesh: Mesh, direction: ArrayLike, resolution: int, *, distance: float = np.inf) -> SurfacePoints:
    """What an orthographic depth camera sees that looks along `direction` (3,) at the middle of the mesh: one point for each of its
    resolution x resolution pixels, over the mesh's bounding sphere, whose ray meets a face. It stands `distance` before the middle: what is
    nearer to it is behind it, unseen; by default it sees everything. Normals face the camera, whatever the faces' orientation."""
    d = np.asarray(direction, np.float64)
    if d.shape != (3,) or not 0 < np.linalg.norm(d) < np.inf or resolution < 1:
        raise UsageError("A view needs a direction of three numbers and a resolution", where=f"direction={d.tolist()}, resolution={resolution}")
    d = d / np.linalg.norm(d)
    low, high = bounds(mesh)
    centre, radius = (low + high) / 2, float(np.linalg.norm(high - low)) / 2
    across = np.linalg.svd(d[None])[2][1:]  # two axes at right angles to d
    pixel = (np.arange(resolution) + 0.5) / resolution * 2 - 1
    plane = np.stack(np.meshgrid(pixel, pixel, indexing="ij"), -1).reshape(-1, 2) @ across
    origins = centre + radius * plane - min(distance, 1.01 * radius) * d
    face = Scene(mesh).first_hits(origins, np.broadcast_to(d, origins.shape)).face
    origins, face = origins[face >= 0], face[face >= 0]
    # The ray meets the face's plane, now in float64. A face seen edge on has no such point: none is made up.
    normals = face_normals(mesh)[face]
    slope = normals @ d
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = ((mesh.vertices[mesh.faces[face, 0]] - origins) * normals).sum(1) / slope
    seen = np.abs(slope) > 1e-6
    return SurfacePoints((origins + depth[:, None] * d)[seen], (normals * -np.sign(slope)[:, None])[seen], face[seen])
