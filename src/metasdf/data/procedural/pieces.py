"""What procedural shapes are made of: convex pieces, each given by points (n, 3) whose hull it is, and dice to draw with.

Every shape is a list of such pieces, so its union is a watertight solid and its signed distance is exact (`geometry.solids`).
Pieces that belong together overlap: contact along an edge only would be no joint.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Piece = Floats  # (n, 3), at least four points that span space
Vector = Sequence[float] | Floats


class Dice:
    """Draws of one shape, in order, from its own generator. Lengths are rounded so that parameters are short and exact in JSON."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def between(self, low: float, high: float) -> float:
        return round(float(self._rng.uniform(low, high)), 4)

    def word(self, words: str) -> str:
        """One of the words; those that are repeated are likelier."""
        return words.split()[self.count(0, len(words.split()) - 1)]

    def count(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return int(self._rng.integers(low, high + 1))

    def chance(self, probability: float) -> bool:
        return bool(self._rng.random() < probability)

    def pick(self, **weights: float) -> str:
        """One of the names, as likely as its weight."""
        share = np.cumsum(list(weights.values()))
        return list(weights)[int(np.searchsorted(share, self._rng.random() * share[-1], side="right"))]


def vec(*x: float) -> Floats:
    return np.array(x, np.float64)


def unit(x: Vector) -> Floats:
    return np.asarray(x, np.float64) / np.linalg.norm(x)


def block(low: Vector, high: Vector) -> list[Piece]:
    """The box between two opposite corners."""
    return [np.stack(np.meshgrid(*zip(low, high, strict=True), indexing="ij"), -1).reshape(-1, 3).astype(np.float64)]


def cushion(low: Vector, high: Vector, radius: float) -> list[Piece]:
    """A box with rounded edges and corners."""
    radius = min(radius, 0.499 * float(np.min(np.subtract(high, low))))
    return [(block(np.add(low, radius), np.subtract(high, radius))[0][:, None] + radius * BALL).reshape(-1, 3)]


def ball(centre: Vector, half: Vector) -> list[Piece]:
    """An ellipsoid."""
    return [np.asarray(centre) + BALL_FINE * np.asarray(half)]


def ring(centre: Vector, u: Vector, v: Vector, *, n: int = 16, power: float = 2.0) -> Floats:
    """n points of a superellipse with half axes u and v; power 2 is an ellipse, 4 nearly a rectangle, 1 a rhombus."""
    t = (np.arange(n) + 0.5) * 2 * np.pi / n
    c, s = (np.sign(w) * np.abs(w) ** (2 / power) for w in (np.cos(t), np.sin(t)))
    return np.asarray(centre) + c[:, None] * np.asarray(u) + s[:, None] * np.asarray(v)


def loft(sections: Sequence[Floats], *, closed: bool = False) -> list[Piece]:
    """Pieces between each two neighbouring sections."""
    ahead = [*sections[1:], sections[0]] if closed else sections[1:]
    pieces = [np.concatenate(pair) for pair in zip(sections, ahead, strict=closed)]
    last = len(pieces) if closed else len(pieces) - 1
    return joined(pieces, [(i, (i + 1) % len(pieces), ahead[i]) for i in range(last)])


def strips(sections: Sequence[Floats], cuts: Sequence[slice], *, closed: bool = False) -> list[Piece]:
    """A loft of sections that are not convex, each cut in the same way into convex parts, whose neighbours share corners."""
    lanes = [loft([section[cut] for section in sections], closed=closed) for cut in cuts]
    ahead = [*sections[1:], sections[0]] if closed else sections[1:]
    n = len(lanes[0])
    faces = [(k * n + i, (k + 1) * n + i, np.concatenate((sections[i][cuts[k + 1].start : cuts[k].stop], ahead[i][cuts[k + 1].start : cuts[k].stop])))
             for k in range(len(cuts) - 1) for i in range(n)]  # fmt: skip
    return joined([piece for lane in lanes for piece in lane], faces)


def joined(pieces: list[Piece], faces: Iterable[tuple[int, int, Floats]]) -> list[Piece]:
    """Pieces that share faces (one piece, the other, corners of the face), made to overlap there.

    Their hulls would meet in faces that rounding tears apart, and the union would keep slits of no thickness. So each piece gets one point
    more, in the middle of the face and a little within its neighbour: the union stays what it was."""
    pieces, middles = list(pieces), [piece.mean(0) for piece in pieces]
    for one, other, face in faces:
        middle = face.mean(0)
        narrow = np.linalg.svd(face - middle, compute_uv=False)[1] / np.sqrt(len(face))
        for a, b in ((one, other), (other, one)):
            into = middles[b] - middle
            step = min(0.1, 0.2 * narrow / np.linalg.norm(into))
            pieces[a] = np.concatenate((pieces[a], [middle + step * into]))
    return pieces


def frame(axis: Vector, up: Vector = (0.0, 1.0, 0.0)) -> tuple[Floats, Floats]:
    """Two unit vectors at right angles to the axis and each other, the second as near `up` as can be."""
    axis = unit(axis)
    side = np.cross(up, axis)
    side = unit(side) if np.linalg.norm(side) > 1e-3 else unit(np.cross((0.0, 0.0, 1.0), axis))
    return side, np.cross(axis, side)


def beam(a: Vector, b: Vector, size: tuple[float, float], *, end: tuple[float, float] | None = None, up: Vector = (0.0, 1.0, 0.0)) -> list[Piece]:
    """A straight bar from a to b of rectangular section, `size` sideways and along `up`, at b `end`."""
    side, over = frame(np.subtract(b, a), up)
    corners = vec(-1, 1, 1, -1)[:, None] / 2, vec(-1, -1, 1, 1)[:, None] / 2
    return [np.concatenate([at + corners[0] * side * s[0] + corners[1] * over * s[1] for at, s in ((a, size), (b, end or size))])]


def post(foot: Vector, head: Vector, size: tuple[float, float], *, end: tuple[float, float] | None = None) -> list[Piece]:
    """A bar with level ends, however it slants: `size` along x and z at the foot, `end` at the head."""
    square = vec(-1, 0, -1, 1, 0, -1, 1, 0, 1, -1, 0, 1).reshape(4, 3) / 2
    return loft([np.asarray(at) + square * (s[0], 1, s[1]) for at, s in ((foot, size), (head, end or size))])


def rod(a: Vector, b: Vector, radius: float, *, end: float | None = None, n: int = 12) -> list[Piece]:
    """A straight round bar, of radius `end` at b."""
    return lathe([(0.0, radius), (1.0, radius if end is None else end)], a, b, n=n)


def lathe(profile: Sequence[tuple[float, float]], a: Vector, b: Vector, *, n: int = 16) -> list[Piece]:
    """A body of revolution around the axis from a to b; the profile is (place along it in 0..1, radius in units of length)."""
    a, axis = np.asarray(a, np.float64), np.subtract(b, a)
    side, over = frame(axis)
    return loft([ring(a + t * axis, r * side, r * over, n=n) for t, r in profile])


def waves(profile: Sequence[tuple[float, float]], *, steps: int = 3) -> list[tuple[float, float]]:
    """The profile of a lathe with level tangents at its points, which are its bulges and waists."""
    rows = [profile[0]]
    for (t, r), (t_next, r_next) in pairwise(profile):
        rows += [(t + (t_next - t) * s, r + (r_next - r) * s * s * (3 - 2 * s)) for s in np.linspace(0, 1, steps + 1)[1:]]
    return rows


def tube(path: Sequence[Vector], radius: float | Sequence[float], *, n: int = 10, closed: bool = False) -> list[Piece]:
    """A bent round bar along a path, mitred at its corners."""
    points = np.asarray(path, np.float64)
    radii = np.broadcast_to(np.asarray(radius, np.float64), len(points))
    ahead, behind = np.roll(points, -1, 0) - points, points - np.roll(points, 1, 0)
    if not closed:
        ahead[-1], behind[0] = behind[-1], ahead[0]
    sections, over = [], frame(ahead[0])[1]
    for point, r, before, after in zip(points, radii, behind, ahead, strict=True):
        tangent = unit(unit(before) + unit(after))
        side, over = frame(tangent, over)
        bend = unit(after) - unit(before)
        stretch = 1 / max(float(tangent @ unit(after)), 0.3)  # so that the bar keeps its thickness around the corner
        circle = ring((0, 0, 0), r * side, r * over, n=n)
        if np.linalg.norm(bend) > 1e-6:
            circle += np.outer(circle @ unit(bend), unit(bend)) * (stretch - 1)
        sections.append(point + circle)
    return loft(sections, closed=closed)


def rounded_path(corners: Sequence[Vector], radius: float, *, steps: int = 3, closed: bool = False) -> list[Floats]:
    """The path with its corners rounded, as far as its sides allow."""
    points, path = [np.asarray(c, np.float64) for c in corners], []
    for i, corner in enumerate(points):
        if not closed and i in (0, len(points) - 1):
            path.append(corner)
            continue
        to_before, to_after = points[i - 1] - corner, points[(i + 1) % len(points)] - corner
        back = min(radius, 0.45 * float(min(np.linalg.norm(to_before), np.linalg.norm(to_after))))
        start, stop = corner + back * unit(to_before), corner + back * unit(to_after)
        path += [(1 - t) ** 2 * start + 2 * t * (1 - t) * corner + t * t * stop for t in np.linspace(0, 1, steps + 1)]
    return path


def slab(outline: Floats, low: float, high: float, *, bevel: float = 0.0, under: float = 0.0) -> list[Piece]:
    """A convex plate: outline (n, 2) in (x, z) between two heights. `bevel` cuts its upper edge, `under` its lower one."""
    rows = [(low, under), (low + under, 0.0), (high - bevel, 0.0), (high, bevel)]
    half = np.abs(outline).max(0)
    return [np.concatenate([np.insert(outline * (1 - cut / half), 1, y, axis=1) for y, cut in rows])]


def outline(kind: str, width: float, depth: float, *, corner: float = 0.0) -> Floats:
    """The outline (n, 2) of a plate in (x, z): rectangle, trapezoid (wider in front), rounded, round, oval, hexagon or octagon."""
    half = vec(width, depth) / 2
    if kind == "rectangle":
        return half * [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    if kind == "trapezoid":
        return half * [(-0.84, -1), (0.84, -1), (1, 1), (-1, 1)]
    if kind == "rounded":
        turn = np.linspace(0, np.pi / 2, 6)
        quarter = np.stack((np.cos(turn), np.sin(turn)), -1) * corner + (half - corner)
        return np.concatenate([quarter * s for s in ((1, 1), (-1, 1), (-1, -1), (1, -1))])
    if kind == "hexagon":
        return half * [(1, 0), (0.55, 1), (-0.55, 1), (-1, 0), (-0.55, -1), (0.55, -1)]
    n, power = {"round": (32, 2.0), "oval": (36, 2.6), "octagon": (8, 2.0)}[kind]
    points = ring((0, 0, 0), (1, 0, 0), (0, 0, 1), n=n, power=power)[:, ::2]
    return half * points / np.abs(points).max(0)


def moved(pieces: Iterable[Piece], shift: Vector) -> list[Piece]:
    return [piece + np.asarray(shift) for piece in pieces]


def mirrored(pieces: Iterable[Piece], axis: int) -> list[Piece]:
    """The pieces and their images in the plane through the origin across that axis."""
    pieces, flip = list(pieces), np.where(np.arange(3) == axis, -1.0, 1.0)
    return pieces + [piece * flip for piece in pieces]


def around(pieces: Iterable[Piece], n: int, *, start: float = 0.0) -> list[Piece]:
    """n copies of the pieces, turned evenly around the y axis, the first by `start` radians."""
    turns = [(np.cos(t), np.sin(t)) for t in start + np.arange(n) * 2 * np.pi / n]
    return [piece @ vec(c, 0, s, 0, 1, 0, -s, 0, c).reshape(3, 3) for piece in pieces for c, s in turns]


def _ball(n: int) -> Floats:
    """Points of the unit sphere on n circles of latitude, poles included."""
    latitudes = np.linspace(-np.pi / 2, np.pi / 2, n + 2)[1:-1]
    rows = [ring((0, np.sin(t), 0), (np.cos(t), 0, 0), (0, 0, np.cos(t)), n=2 * n + 2) for t in latitudes]
    return np.concatenate([*rows, [(0, 1, 0), (0, -1, 0)]])


BALL, BALL_FINE = _ball(3), _ball(7)
