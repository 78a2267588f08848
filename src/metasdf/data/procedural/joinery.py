"""What tables, chairs and benches share: legs of many kinds, stretchers, backs that lean and curve. Metres; y up, the front towards +z."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from metasdf.data.procedural.pieces import Dice, Floats, Piece, beam, lathe, loft, post, ring, rod, tube, vec, waves

TURNED = [  # place along a turned leg from its foot, thickness relative to its top
    (0.0, 0.7), (0.06, 0.75), (0.1, 0.5), (0.16, 0.5), (0.3, 0.85), (0.42, 0.62), (0.6, 0.95), (0.66, 0.6),
    (0.7, 1.0), (0.74, 0.7), (0.78, 1.0), (1.0, 1.0),
]  # fmt: skip
BOWED = [  # place along a cabriole leg, how far it stands out relative to the height, thickness
    (0.0, 0.06, 0.9), (0.05, 0.07, 0.8), (0.1, 0.03, 0.5), (0.3, -0.02, 0.5), (0.55, 0.02, 0.7), (0.8, 0.06, 1.05),
    (0.92, 0.04, 1.15), (1.0, 0.0, 1.1),
]  # fmt: skip


@dataclass(frozen=True)
class Legs:
    """Legs that stand on the ground, one per corner."""

    kind: str  # square, tapered, round, cone, turned, cabriole or hairpin
    size: float  # thickness at the top
    taper: float  # thickness at the foot, relative
    splay: float  # how far the foot stands out, relative to the height
    stretcher: str  # none, box or H
    stretcher_height: float  # relative to that of the legs

    @classmethod
    def draw(cls, dice: Dice, *, size: tuple[float, float], stretchers: float) -> Legs:
        kind = dice.pick(square=4, tapered=3, round=2, cone=3, turned=1, cabriole=0.8, hairpin=1)
        thickness = dice.between(*size) * (0.45 if kind == "hairpin" else 1.3 if kind in ("turned", "cabriole") else 1.0)
        splay = 0.0 if kind in ("turned", "cabriole") or dice.chance(0.45) else dice.between(0.03, 0.2)
        straight = kind not in ("hairpin", "cabriole") and dice.chance(stretchers)
        return cls(kind=kind, size=round(max(thickness, 0.016), 4), taper=dice.between(0.45, 0.8), splay=splay,
                   stretcher=dice.pick(box=1, H=1) if straight else "none", stretcher_height=dice.between(0.15, 0.45))  # fmt: skip

    def corners(self, x: float, z: float, *, height: float) -> list[tuple[Floats, Floats]]:
        """(foot, top) of the four legs whose tops are at (+-x, +-z)."""
        out = self.splay * height / np.sqrt(2)
        signs = ((1, 1), (-1, 1), (-1, -1), (1, -1))
        return [(vec(s * (x + out), 0, t * (z + out)), vec(s * x, height, t * z)) for s, t in signs]

    def build(self, x: float, z: float, *, height: float) -> list[Piece]:
        corners = self.corners(x, z, height=height)
        return [piece for foot, top in corners for piece in limb(foot, top, self)] + self._stretchers(corners)

    def _stretchers(self, corners: list[tuple[Floats, Floats]]) -> list[Piece]:
        if self.stretcher == "none":
            return []
        fr, fl, bl, br = (foot + self.stretcher_height * (top - foot) for foot, top in corners)
        section = (0.5 * self.size, 0.8 * self.size)
        pairs = [(fr, br), (fl, bl)]
        pairs += [((fr + br) / 2, (fl + bl) / 2)] if self.stretcher == "H" else [(fl, fr), (bl, br)]
        if self.kind in ("square", "tapered"):
            return [piece for a, b in pairs for piece in beam(a, b, section)]
        return [piece for a, b in pairs for piece in rod(a, b, 0.35 * self.size, n=10)]


def limb(foot: Floats, top: Floats, legs: Legs) -> list[Piece]:
    """One leg."""
    size, thin = legs.size, legs.size * legs.taper
    if legs.kind in ("square", "tapered"):
        end = thin if legs.kind == "tapered" else size
        return post(foot, top, (end, end), end=(size, size))
    if legs.kind in ("round", "cone"):
        end = (thin if legs.kind == "cone" else size) / 2
        return loft([_disc(foot, end), _disc(top, size / 2)])
    if legs.kind == "turned":
        return lathe([(t, r * size / 2) for t, r in waves(TURNED, steps=2)], foot, top, n=14)
    outward = vec(np.sign(foot[0]), 0, np.sign(foot[2])) / np.sqrt(2)
    if legs.kind == "hairpin":
        along = vec(-outward[2], 0, outward[0])
        apart = 0.11 * (top[1] - foot[1])
        ends = [top + s * apart * along - (apart + 0.005) * outward for s in (-1, 1)]
        low = foot + vec(0, legs.size / 2, 0)
        return tube([ends[0], low - along * 0.02, low + along * 0.02, ends[1]], legs.size / 2, n=8)
    height = top[1] - foot[1]
    return loft([_disc(foot + vec(0, t * height, 0) + outward * height * out, r * size / 2) for t, out, r in BOWED])


def _disc(centre: Floats, radius: float, n: int = 12) -> Floats:
    t = np.arange(n) * 2 * np.pi / n
    return centre + radius * np.stack((np.cos(t), 0 * t, np.sin(t)), -1)


@dataclass(frozen=True)
class Back:
    """What one leans on: a surface over the rear edge of a seat, of parameters u in -1..1 across and v in 0..1 upwards."""

    kind: str  # panel, slats, bars, spindles, padded, frame or hoop
    height: float
    lean: float  # backwards, relative to the height
    curve: float  # how far its middle lies behind its sides
    flare: float  # how much wider its top is, relative
    crown: float  # how much higher its middle is, relative to the height
    thickness: float
    count: int  # of slats, bars or spindles
    start: float  # where it begins above the seat, relative to the height

    @classmethod
    def draw(cls, dice: Dice, *, height: tuple[float, float], wide: bool = False, kinds: dict[str, float] | None = None) -> Back:
        """With the weights of its kinds where not all will do; `wide` as on benches."""
        kind = dice.pick(**(kinds or {"panel": 3, "slats": 2.5, "bars": 2.5, "spindles": 1.5, "padded": 2, "frame": 1.5, "hoop": 1.5}))
        return cls(kind=kind, height=dice.between(*height), lean=dice.between(0.04, 0.32),
                   curve=0.0 if wide or dice.chance(0.3) else dice.between(0.01, 0.07),
                   flare=0.0 if wide or dice.chance(0.4) else dice.between(-0.15, 0.18),
                   crown=0.0 if dice.chance(0.55) else dice.between(0.02, 0.12),
                   thickness=dice.between(0.016, 0.032), count=dice.count(6, 14) if wide and kind == "slats" else dice.count(2, 5),
                   start=dice.between(0.0, 0.35))  # fmt: skip

    def build(self, width: float, *, seat: float, rear: float, posts: bool = True) -> list[Piece]:
        """Over a seat `width` wide, whose top is at height `seat` and whose rear edge is at z = rear."""
        return _Surface(self, width, seat, rear).build(posts=posts)

    def at(self, u: float, v: float, *, width: float, seat: float, rear: float, forward: float = 0.0) -> Floats:
        """A point of it, or one in front of it."""
        return _Surface(self, width, seat, rear).at(u, v, forward=forward)


class _Surface:
    def __init__(self, back: Back, width: float, seat: float, rear: float) -> None:
        self.back, self.half, self.seat, self.rear = back, width / 2, seat, rear

    def at(self, u: float, v: float, *, forward: float = 0.0) -> Floats:
        b = self.back
        top = b.height * (1 + b.crown * (1 - u * u))
        z = self.rear - b.lean * b.height * v - b.curve * (1 - u * u) * min(1.0, 0.3 + v)
        return vec(u * self.half * (1 + b.flare * v), self.seat + v * top, z + forward)

    def strip(self, u: tuple[float, float], v: tuple[float, float], *, thickness: float, forward: float = 0.0, steps: int = 8) -> list[Piece]:
        """The plate over a rectangle of u and v."""
        along = np.linspace(*u, max(2, round(steps * (u[1] - u[0]) / 2) + 1))
        sides = (forward - thickness / 2, forward + thickness / 2)
        return loft([np.stack([self.at(a, b, forward=f) for b in v for f in sides]) for a in along])

    def build(self, *, posts: bool) -> list[Piece]:
        b, t = self.back, self.back.thickness
        top = self.strip((-1, 1), (0.82, 1.0), thickness=t)
        low = self.strip((-1, 1), (max(b.start, 0.02) - 0.02, max(b.start, 0.02) + 0.1), thickness=t)
        edge = 1 - 1.1 * t / self.half
        sides = [p for u in ((-1.0, -edge + 0.04), (edge - 0.04, 1.0)) for p in self.strip(u, (-0.06, 1.005), thickness=1.3 * t, steps=2)]
        if b.kind == "hoop":
            return self._hoop()
        body: dict[str, Callable[[], list[Piece]]] = {
            "panel": lambda: self.strip((-1, 1), (b.start if posts else -0.06, 1.0), thickness=t),
            "padded": lambda: self.strip((-1, 1), (b.start if posts else -0.06, 1.0), thickness=t) + self._pad(),
            "slats": lambda: top + low + self._slats(0.5),
            "spindles": lambda: top + self._spindles(),
            "bars": self._bars,
            "frame": lambda: top + low + self.strip((-0.98, 0.98), (b.start + 0.05, 0.9), thickness=0.6 * t) if b.start > 0.15 else top + low,
        }  # fmt: skip
        return body[b.kind]() + (sides if posts or b.kind in ("slats", "bars", "spindles", "frame") else [])

    def _pad(self) -> list[Piece]:
        """Upholstery in front of a panel, thinner towards its edges."""
        b = self.back
        middle, half = (1.02 + b.start) / 2 - 0.02, (0.94 - b.start) / 2
        sections = []
        for u in np.linspace(-0.95, 0.95, 9):
            edge = (1 - abs(u) ** 5) ** 0.5
            profile = ring((0, 0, 0), (1, 0, 0), (0, 1, 0), n=14, power=4)
            spots = [(middle + v * half * (0.9 + 0.1 * edge), b.thickness * (0.3 + w * 1.4 * (0.3 + edge))) for v, w, _ in profile]
            sections.append(np.stack([self.at(u, v, forward=forward) for v, forward in spots]))
        return loft(sections)

    def _hoop(self) -> list[Piece]:
        """A bent rod around spindles or a panel."""
        b, r = self.back, max(0.5 * self.back.thickness, 0.01)
        turn = np.linspace(0, np.pi, 15)
        arch = [self.at(-np.sign(np.cos(t)) * abs(np.cos(t)) ** 0.6, np.sin(t) ** 0.7) for t in turn[1:-1]]
        pieces = tube([self.at(-0.92, -0.06), *arch, self.at(0.92, -0.06)], r, n=8)
        if b.start > 0.17:
            return pieces + self.strip((-0.96, 0.96), (0.4, 0.72), thickness=0.8 * r)
        us = np.linspace(-0.8, 0.8, b.count + 3)[1:-1]
        return pieces + [p for u in us for p in rod(self.at(0.85 * u, -0.05), self.at(u, 0.99 * (1 - abs(u) ** 3.3) ** 0.35), 0.7 * r, n=8)]

    def _slats(self, fill: float) -> list[Piece]:
        edges = np.linspace(-1, 1, self.back.count + 2)
        half = (edges[1] - edges[0]) / 2 * fill
        low = max(self.back.start, 0.02)
        return [p for u in edges[1:-1] for p in self.strip((u - half, u + half), (low, 0.9), thickness=0.7 * self.back.thickness, steps=2)]

    def _bars(self) -> list[Piece]:
        b = self.back
        high = 0.55 / b.count * (0.95 - b.start)
        return [p for v in np.linspace(max(b.start, 0.15), 0.86, b.count) for p in self.strip((-1, 1), (v, v + high), thickness=b.thickness)]

    def _spindles(self) -> list[Piece]:
        us = np.linspace(-0.9, 0.9, self.back.count + 3)[1:-1]
        return [p for u in us for p in rod(self.at(0.9 * u, -0.05), self.at(u, 0.9), max(0.008, 0.35 * self.back.thickness), n=8)]

