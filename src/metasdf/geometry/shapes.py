"""Solids with exact signed distances in closed form, negative inside: building blocks for tests, examples and teaching.

A `Solid` maps points (N, 3) to distances (N,), float64, in the points' units. All of these are exact everywhere: the distance to the nearest
point of the surface. Motions, mirrors and scales keep that. `union` keeps it outside and where parts do not overlap; within overlaps it is only
a bound (never deeper than the truth); `metasdf.geometry.solids` is exact there too. y is up: bodies of revolution turn around it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from metasdf.errors import InputError

Floats = NDArray[np.float64]
Solid = Callable[[NDArray[np.floating]], Floats]
Vector = Sequence[float] | Floats


def sphere(radius: float) -> Solid:
    _positive(radius=radius)
    return lambda x: np.linalg.norm(_points(x), axis=1) - radius


def box(half: Vector, *, rounding: float = 0.0) -> Solid:
    """A box from -half to half. With `rounding`, its edges and corners are rounded to that radius, within the same bounds."""
    half = np.broadcast_to(np.asarray(half, np.float64), 3)
    _positive(half=half.min())
    if not 0 <= rounding <= half.min():
        raise InputError("A box cannot be rounded by more than half its thinnest side", where=f"rounding={rounding}, half={half}",
                         fix="round it less")  # fmt: skip
    return lambda x: _outside_or_deepest(np.abs(_points(x)) - (half - rounding)) - rounding


def cylinder(radius: float, half_height: float) -> Solid:
    _positive(radius=radius, half_height=half_height)
    return lambda x: _outside_or_deepest(np.abs(_profile(x)) - (radius, half_height))


def capsule(radius: float, half_height: float) -> Solid:
    """All within `radius` of the segment from (0, -half_height, 0) to (0, half_height, 0)."""
    _positive(radius=radius, half_height=half_height)

    def distance(x: NDArray[np.floating]) -> Floats:
        r, y = _profile(x).T
        return np.hypot(r, np.maximum(np.abs(y) - half_height, 0)) - radius

    return distance


def torus(radius: float, tube: float) -> Solid:
    """A ring around the y axis: all within `tube` of a circle of `radius`."""
    _positive(radius=radius, tube=tube)
    if not tube < radius:
        raise InputError("A torus needs a tube thinner than its radius", where=f"radius={radius}, tube={tube}", fix="make the tube thinner")
    return lambda x: np.linalg.norm(_profile(x) - (radius, 0), axis=1) - tube


def frustum(bottom: float, top: float, *, half_height: float) -> Solid:
    """A cone cut off, radius `bottom` at y = -half_height and `top` at y = half_height: a tapered leg. A radius may be 0: a cone."""
    _positive(bottom=bottom + top, half_height=half_height)
    corners = np.array(((0, -half_height), (bottom, -half_height), (top, half_height), (0, half_height)), np.float64)
    # The side on the axis is no surface: mirrored, the profile is a closed polygon whose distance is that of the solid.
    outline = np.concatenate((corners[1:3], corners[2:0:-1] * (-1, 1)))
    return lambda x: _polygon(_profile(x), outline)


def prism(polygon: Sequence[Vector] | Floats, half_height: float) -> Solid:
    """A simple polygon (n, 2) in (x, z), convex or not, in either sense of turning, from y = -half_height to half_height."""
    outline = np.asarray(polygon, np.float64)
    if outline.ndim != 2 or outline.shape[1] != 2 or len(outline) < 3 or not np.isfinite(outline).all():
        raise InputError("A prism needs a polygon of at least three finite corners", where=f"shape {outline.shape}", fix="pass an (n, 2) array")
    _positive(half_height=half_height)

    def distance(x: NDArray[np.floating]) -> Floats:
        points = _points(x)
        return _outside_or_deepest(np.stack((_polygon(points[:, ::2], outline), np.abs(points[:, 1]) - half_height), -1))

    return distance


def moved(solid: Solid, *, rotation: Floats | None = None, translation: Vector = (0.0, 0.0, 0.0)) -> Solid:
    """The solid turned by `rotation` (3, 3), orthogonal (a reflection mirrors it), then moved."""
    turn, shift = np.eye(3) if rotation is None else np.asarray(rotation, np.float64), np.asarray(translation, np.float64)
    if turn.shape != (3, 3) or not np.allclose(turn @ turn.T, np.eye(3), atol=1e-9):
        raise InputError("A rotation must be an orthogonal matrix", where=f"{turn.tolist()}", fix="use scaled() to change the size")
    return lambda x: solid((_points(x) - shift) @ turn)


def scaled(solid: Solid, factor: float) -> Solid:
    """The solid `factor` times as large, seen from the origin."""
    _positive(factor=factor)
    return lambda x: solid(_points(x) / factor) * factor


def mirrored(solid: Solid, normal: Vector) -> Solid:
    """The solid's image in the mirror through the origin with that normal."""
    n = np.asarray(normal, np.float64)
    _positive(normal=float(np.linalg.norm(n)))
    return moved(solid, rotation=np.eye(3) - 2 * np.outer(n, n) / (n @ n))


def union(*solids: Solid) -> Solid:
    """The smallest of the distances: exact outside and where the solids are apart, a bound within overlaps (see the module)."""
    return lambda x: np.min([solid(x) for solid in solids], 0)


def _to_segments(x: Floats, start: Floats, edge: Floats) -> Floats:
    """Squared distances of points (N, d) to segments (S, d) each: (N, S)."""
    offset = x[:, None] - start
    t = (offset * edge).sum(-1) / np.maximum((edge * edge).sum(-1), np.finfo(np.float64).tiny)
    return ((offset - t.clip(0, 1)[..., None] * edge) ** 2).sum(-1)


def _polygon(p: Floats, outline: Floats) -> Floats:
    """Signed distance of points (N, 2) to a simple polygon (n, 2): the nearest edge, and inside by the even-odd rule."""
    ahead = np.roll(outline, -1, 0)
    edge = ahead - outline
    crosses = (outline[:, 1] > p[:, 1:]) != (ahead[:, 1] > p[:, 1:])
    with np.errstate(divide="ignore", invalid="ignore"):  # edges along the ray, which never count
        x_at = outline[:, 0] + (p[:, 1:] - outline[:, 1]) / edge[:, 1] * edge[:, 0]
    inside = (crosses & (p[:, :1] < x_at)).sum(1) % 2 == 1
    return np.sqrt(_to_segments(p, outline, edge).min(1)) * np.where(inside, -1, 1)


def _outside_or_deepest(q: Floats) -> Floats:
    """Signed distances to parts at right angles to each other (N, k) -> to their intersection (N,)."""
    return np.linalg.norm(np.maximum(q, 0), axis=1) + np.minimum(q.max(1), 0)


def _profile(x: NDArray[np.floating]) -> Floats:
    """(N, 3) -> (N, 2): the distance from the y axis, and y."""
    points = _points(x)
    return np.stack((np.hypot(points[:, 0], points[:, 2]), points[:, 1]), -1)


def _points(x: NDArray[np.floating]) -> Floats:
    points = np.asarray(x, np.float64)
    if points.ndim != 2 or points.shape[1] != 3:
        raise InputError("Points must be an array of shape (N, 3)", where=f"shape {points.shape}", fix="reshape it to (-1, 3)")
    return points


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < np.inf:
            raise InputError(f"{name} must be positive and finite", where=f"{name}={value}", fix="give a positive size")
