"""Frame: the similarity between the user's units and the field's cube, with its inverse."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from metasdf.errors import InputError


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
