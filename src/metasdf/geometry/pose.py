"""Poses: how a scan, in its own axes and units, lies in the cube of a prior, and the exact way back.

The shapes that priors of ours learn from have y up; furniture has its front towards +z, aeroplanes have the nose towards -x. Which of a scan's
axes points up its owner knows. Which way the shape faces is seldom known: a reconstruction tries `headings` and keeps what fits best.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metasdf.errors import UsageError
from metasdf.geometry.frame import Frame, farthest_point

Floats = NDArray[np.float64]
Up = Literal["x", "y", "z", "-x", "-y", "-z"]

_UPRIGHT = {
    "y": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "z": ((1, 0, 0), (0, 0, 1), (0, -1, 0)),  # maps, CAD; the front, at -y, comes to +z
    "x": ((0, -1, 0), (1, 0, 0), (0, 0, 1)),
    "-y": ((1, 0, 0), (0, -1, 0), (0, 0, -1)),  # cameras whose image rows go down
    "-z": ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
    "-x": ((0, 1, 0), (-1, 0, 0), (0, 0, 1)),
}
UPS = tuple(_UPRIGHT)


class Pose(NamedTuple):
    """field = rotation @ (x - centre) * scale, with `frame` the centre, in the scan's own coordinates, and the scale; rotation is (3, 3).

    Distances are multiplied by `frame.scale`. Float64 throughout: far from the origin only what the coordinates themselves lack is lost.
    """

    rotation: Floats
    frame: Frame

    def to_field(self, x: NDArray[np.floating]) -> Floats:
        return self.frame.to_field(x) @ self.rotation.T

    def from_field(self, x: NDArray[np.floating]) -> Floats:
        return self.frame.from_field(np.asarray(x, np.float64) @ self.rotation)


def pose_of(points: NDArray[np.floating], rotation: ArrayLike | None = None) -> Pose:
    """The pose in which points (N, 3) of a surface, turned by `rotation` (3, 3), are framed as meshes are for training: the middle of the
    bounding box in the turned axes at the origin, the farthest point at 1/1.03. Raises InputError for points without a size."""
    turn = np.eye(3) if rotation is None else np.asarray(rotation, np.float64)
    points = np.asarray(points, np.float64)
    near = points.min(0)  # a point beside them: turning large coordinates would cost digits
    centre, scale = farthest_point((points - near) @ turn.T)
    return Pose(turn, Frame(tuple((near + np.asarray(centre) @ turn).tolist()), scale))


def upright(up: Up) -> Floats:
    """The rotation (3, 3) that takes the axis of a scan that points up to y. Raises UsageError for what is no axis."""
    if up not in _UPRIGHT:
        raise UsageError(f"There is no axis {up!r}", where="up", cause="a misspelt axis", fix=f"use one of {', '.join(UPS)}")
    return np.array(_UPRIGHT[up], np.float64)


def headings(n: int) -> list[Floats]:
    """n rotations (3, 3) about the y axis by multiples of 360 / n degrees, none first: 4 for scans that lie along their axes, 24 for any.

    With `upright`: `[turn @ upright("z") for turn in headings(24)]`. Quarter turns are exact. Raises UsageError for n < 1.
    """
    if n < 1:
        raise UsageError("At least one heading is needed", where=f"headings({n})", cause="a number below 1", fix="use 4 or 24")
    angle = 2 * np.pi * np.arange(n) / n
    cos, sin = (np.where(4 * np.arange(n) % n == 0, np.round(f), f) for f in (np.cos(angle), np.sin(angle)))
    return [np.array(((c, 0.0, s), (0.0, 1.0, 0.0), (-s, 0.0, c))) for c, s in zip(cos, sin, strict=True)]
