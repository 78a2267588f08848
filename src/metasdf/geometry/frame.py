"""Frame: the similarity between the user's units and the field's cube, with its inverse."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from metasdf.errors import InputError

FILL = 1 / 1.03  # distance of the farthest point of a 3D shape from the middle, as in DeepSDF's preprocessing
SMALLEST = 1e-300  # half a size whose inverse does not overflow


class Frame(NamedTuple):
    """field = (x - centre) * scale; a distance in the user's units is multiplied by the same scale."""

    centre: tuple[float, ...]
    scale: float

    def to_field(self, x: NDArray[np.floating]) -> NDArray[np.float64]:
        # In float64: georeferenced coordinates lose their digits otherwise.
        return (np.asarray(x, np.float64) - np.asarray(self.centre)) * self.scale

    def from_field(self, x: NDArray[np.floating]) -> NDArray[np.float64]:
        return np.asarray(x, np.float64) / self.scale + np.asarray(self.centre)


def identity(dim: int) -> Frame:
    return Frame((0.0,) * dim, 1.0)


def bounding_box(points: NDArray[np.floating], *, extent: float) -> Frame:
    """The frame that centres the bounding box of `points` (N, d) and maps its longest side to `extent` field units."""
    low, high = np.min(points, 0).astype(np.float64), np.max(points, 0).astype(np.float64)
    size = float((high - low).max())
    if not size > 0:
        raise InputError("all surface points coincide, so the shape has no size", cause="one point, or the same point many times",
                         fix="give points that cover the surface")  # fmt: skip
    return Frame(tuple(((low + high) / 2).tolist()), extent / size)


def farthest_point(points: NDArray[np.floating], *, radius: float = FILL) -> Frame:
    """The frame that centres the bounding box of `points` (N, d) and puts the farthest of them at `radius`. Raises InputError."""
    low, high = np.min(points, 0).astype(np.float64), np.max(points, 0).astype(np.float64)
    centre = (low + high) / 2
    x = points - centre
    size = float(np.abs(x).max())
    if size < SMALLEST:
        raise InputError(f"The shape is {size:.3g} in size, and the inverse of that is no number", cause="one point, or absurdly small units",
                         fix="scale it up")  # fmt: skip
    unit = math.ldexp(1.0, math.frexp(size)[1])  # a power of two: it changes no digit, and squares of small numbers would be zero
    return Frame(tuple(centre.tolist()), radius / (float(np.linalg.norm(x / unit, axis=1).max()) * unit))
