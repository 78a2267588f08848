"""One shape of a 3D data set: all that is drawn from a mesh, and the file that holds it.

The file is a safetensors file. Its arrays, all in field units, where the shape fills the cube [-1, 1]^3:
    samples   (M, 4) float32     x, y, z and signed distance, drawn as DeepSDF does, in random order: any part of them is a fair sample
    volume    (U, 4) float32     x, y, z and signed distance, uniform in the cube: for what is said of volumes, such as IoU
    surface   (K, 6) float32     points on the surface, uniform by area, with unit normals (zero where only points are known)
    views     (V, 6) float32     what depth cameras see of it, points and normals towards the camera, one view after the other
    view_offsets  (n + 1,) int64 view k owns views[view_offsets[k] : view_offsets[k + 1]]
    slices    (3, S, S) float32  the signed distance on the planes x = 0, y = 0 and z = 0, to look at; rows go up, see `SLICE_AXES`
    picture   (P, P, 3) uint8    the surface, rendered; no rows where there is no mesh
and its metadata the facts: name, category, centre and scale (field = (x - centre) * scale), how the sign was found and how far to trust it.
Of shapes that come as DeepSDF's samples there are these, whatever their number and cube, and points without normals; no
volume, views, slices or picture.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from metasdf.data.item import damaged, opened
from metasdf.geometry.frame import Frame, farthest_point
from metasdf.geometry.mesh import Mesh
from metasdf.geometry.render import render
from metasdf.geometry.sampling import depth_view, sdf_samples, surface_points, uniform
from metasdf.geometry.sign import Hollows, SignMethod
from metasdf.geometry.signed import MeshSDF

SLICE = 96  # points along a side of a slice
SLICE_AXES = (((2, -1.0), (1, -1.0)), ((0, 1.0), (2, 1.0)), ((0, 1.0), (1, -1.0)))  # of the picture's columns and rows: (axis, direction)
PICTURE = 192  # pixels
VOLUME = 20_000  # uniform points, where so many samples are drawn
VERSION = 2  # of what is drawn: shapes of another version are drawn again


@dataclass(frozen=True)
class Sampling:
    """What is drawn of each shape. thickness: given to sheets on each side, in field units."""

    samples: int = 500_000
    surface: int = 100_000
    views: int = 8
    view_size: int = 64  # pixels of a depth camera along a side
    sign: SignMethod = "auto"
    hollows: Hollows = "fill"
    thickness: float = 0.0
    seed: int = 0


class Shape(NamedTuple):
    arrays: dict[str, NDArray[Any]]
    facts: dict[str, Any]


def frame_of(mesh: Mesh) -> Frame:
    """The middle of the bounding box goes to the origin, and the farthest vertex to a distance of 1 / 1.03."""
    return farthest_point(mesh.vertices[np.unique(mesh.faces)])


def sample_mesh(mesh: Mesh, *, name: str, category: str, how: Sampling) -> Shape:
    """The same for the same mesh, name and options, wherever it is drawn. Raises InputError where there is no surface."""
    frame = frame_of(mesh)
    mesh = Mesh(frame.to_field(mesh.vertices), mesh.faces)
    sdf = MeshSDF(mesh, sign=how.sign, hollows=how.hollows, thickness=how.thickness)
    rng = keyed(how.seed, name)
    samples = sdf_samples(sdf, how.samples, rng=rng)
    surface = surface_points(sdf.surface, how.surface, rng=rng)
    views = [depth_view(mesh, direction, how.view_size) for direction in rng.standard_normal((how.views, 3))]
    anywhere = uniform(min(VOLUME, how.samples), rng=rng)
    arrays = {
        "samples": rng.permutation(np.column_stack((samples.x, samples.s)).astype(np.float32)),
        "volume": np.column_stack((anywhere, sdf(anywhere))).astype(np.float32),
        "surface": np.concatenate((surface.points, surface.normals), 1, dtype=np.float32),
        **pack_views([np.concatenate((view.points, view.normals), 1, dtype=np.float32) for view in views]),
        "slices": slices_of(sdf),
        "picture": render(sdf.surface, size=PICTURE, supersample=2),
    }
    facts = {
        "name": name, "category": category, "centre": list(frame.centre), "scale": frame.scale, "vertices": len(mesh.vertices),
        "faces": len(mesh.faces), "kind": sdf.kind, "solid_share": sdf.solid_share, "hollow": sdf.hollow, "method": sdf.method, "reason": sdf.reason,
        "agreement": sdf.agreement, "agreement_uniform": sdf.agreement_uniform, "inside": float((samples.s < 0).mean()),
    }  # fmt: skip
    return Shape(arrays, facts)


def keyed(seed: int, name: str) -> np.random.Generator:
    """What is drawn for a name depends on it and the seed alone."""
    return np.random.default_rng((seed, *hashlib.sha256(name.encode(errors="surrogateescape")).digest()))


def pack_views(views: Sequence[NDArray[np.float32]]) -> dict[str, NDArray[Any]]:
    rows = np.concatenate([np.zeros((0, 6), np.float32), *views])
    return {"views": rows, "view_offsets": np.cumsum([0, *(len(view) for view in views)], dtype=np.int64)}


def slice_points() -> NDArray[np.float64]:
    """Points (3, S, S, 3) of the three slices, as a picture shows them: first row on top."""
    t = (np.arange(SLICE) + 0.5) / SLICE * 2 - 1
    points = np.zeros((3, SLICE, SLICE, 3))
    for plane, ((right, right_sign), (down, down_sign)) in zip(points, SLICE_AXES, strict=True):
        plane[..., right] = right_sign * t[None, :]
        plane[..., down] = down_sign * t[:, None]
    return points


def slices_of(sdf: Any) -> NDArray[np.float32]:
    return np.asarray(sdf(slice_points().reshape(-1, 3)).reshape(3, SLICE, SLICE), np.float32)


def encode(shape: Shape) -> bytes:
    """The file's bytes, the same for the same shape."""
    arrays = {name: np.ascontiguousarray(array) for name, array in shape.arrays.items()}
    return save(arrays, metadata={"facts": json.dumps(shape.facts, sort_keys=True, allow_nan=False)})


def read_facts(path: Path) -> dict[str, Any]:
    """Raises InputError for a file that is damaged, or no shape of ours."""
    with opened(path) as file:
        return _facts(file, path)


def read_shape(path: Path, *names: str) -> Shape:
    """Facts and the named arrays, all without names. Raises as `read_facts`."""
    with opened(path) as file:
        facts = _facts(file, path)
        return Shape({name: file.get_tensor(name) for name in names or file.keys()}, facts)


def _facts(file: Any, path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(file.metadata()["facts"])
        if not isinstance(facts["name"], str):
            raise ValueError("no name")
    except (TypeError, KeyError, ValueError, RecursionError) as error:
        raise damaged(path, error) from error
    return dict(facts)
