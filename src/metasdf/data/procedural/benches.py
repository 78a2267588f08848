"""Benches: park benches of slats, planks on legs or blocks, upholstered ones, with and without backs and arms."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from metasdf.data.procedural.joinery import Back, Legs
from metasdf.data.procedural.pieces import Dice, Piece, beam, block, cushion, mirrored, outline, post, rounded_path, slab, tube


@dataclass(frozen=True)
class Bench:
    """All that makes one bench. Metres; who sits looks towards +z."""

    seat: str  # slats, plank, oval or padded
    length: float
    depth: float
    height: float
    thickness: float
    slats: int
    gap: float  # between slats, relative to their pitch
    base: str  # legs, frames, loops, panels, blocks or crossed
    legs: Legs
    supports: int  # along the length
    inset: float  # of the outer supports, relative to the length
    size: float
    back: Back | None
    arms: bool
    style: str

    @classmethod
    def draw(cls, dice: Dice) -> Bench:
        seat = dice.pick(slats=5, plank=3, oval=0.5, padded=1.5)
        kinds = {"slats": 2, "bars": 5, "panel": 1.2, "padded": 0.6}
        back = Back.draw(dice, height=(0.32, 0.5), wide=True, kinds=kinds) if seat != "oval" and dice.chance(0.55) else None
        base = dice.pick(frames=4, legs=3, loops=1.5, panels=1.5, blocks=1 if back is None else 0.4, crossed=1) if seat != "oval" else "legs"
        length = dice.between(0.9, 2.1) if seat != "padded" else dice.between(0.75, 1.4)
        return cls(seat=seat, length=length, depth=dice.between(0.3, 0.48), height=dice.between(0.38, 0.5), thickness=dice.between(0.025, 0.06),
                   slats=dice.count(3, 7), gap=dice.between(0.12, 0.3), base=base, legs=Legs.draw(dice, size=(0.035, 0.08), stretchers=0.4),
                   supports=3 if length > 1.6 and dice.chance(0.5) else 2, inset=dice.between(0.04, 0.14), size=dice.between(0.035, 0.09), back=back,
                   arms=dice.chance(0.55) if back or base == "loops" else False, style=dice.pick(a=1, b=1, c=1))  # fmt: skip

    def build(self) -> list[Piece]:
        pieces = self._seat() + BASES[self.base](self)
        if self.back:
            low = self.height - self.thickness / 2
            pieces += self.back.build(0.98 * self.length, seat=low, rear=self.rear, posts=False) + self._posts()
        return pieces + (self._arms() if self.arms and self.base != "loops" else [])

    @property
    def under(self) -> float:
        return self.height - 0.6 * self.thickness

    @property
    def rear(self) -> float:
        """Where the back stands; on upholstery beyond its rounded edge, so that no hollow is left below."""
        return (0.045 if self.seat == "padded" else 0.01) - self.depth / 2

    @property
    def places(self) -> list[float]:
        """Where the supports stand along x."""
        end = self.length * (0.5 - self.inset)
        return [float(x) for x in np.linspace(-end, end, self.supports)]

    def _seat(self) -> list[Piece]:
        half, low, high = self.length / 2, self.height - self.thickness, self.height
        if self.seat == "slats":
            edges = np.linspace(-self.depth / 2, self.depth / 2, self.slats + 1)
            inset = (edges[1] - edges[0]) * self.gap / 2
            return [p for a, b in pairwise(edges) for p in cushion((-half, low, a + inset), (half, high, b - inset), 0.006)]
        if self.seat == "padded":
            pad = cushion((-half, low, -self.depth / 2), (half, high + 0.07, self.depth / 2), 0.035)
            return pad + block((-half + 0.02, low - 0.02, -self.depth / 2 + 0.02), (half - 0.02, low + 0.02, self.depth / 2 - 0.02))
        shape = outline("oval" if self.seat == "oval" else "rounded", self.length, self.depth, corner=0.02 if self.style == "a" else 0.07)
        return slab(shape, low, high, bevel=0.2 * self.thickness, under=0.1 * self.thickness)

    def _posts(self) -> list[Piece]:
        """What holds the back, over each support."""
        b = self.back
        assert b is not None
        s, rear = max(self.size * 0.6, 0.03), self.rear - b.thickness / 2
        tops = [(x, self.height + b.height * (0.95 if self.style == "a" else 1.04), rear - b.lean * b.height) for x in self.places]
        return [p for x, y, z in tops for p in beam((x, self.under - 0.06, rear + 0.012), (x, y, z), (s, 0.03))]

    def _arms(self) -> list[Piece]:
        y, s, z = self.height + 0.2, max(self.size * 0.7, 0.035), self.depth / 2
        x = self.length / 2 - max(self.inset * self.length, s)
        lean = self.back.lean * 0.2 if self.back else 0.0
        rest = cushion((x - s / 2, y - 0.03, -z - lean - 0.02), (x + s / 2, y, z + 0.02), 0.01)
        return mirrored(rest + block((x - s / 3, self.under - 0.02, z - 0.06), (x + s / 3, y - 0.01, z - 0.02)), 0)


def _legs(b: Bench) -> list[Piece]:
    inset = b.legs.size / 2 + 0.6 * b.legs.splay * b.under / np.sqrt(2)
    k = 0.7 if b.seat == "oval" else 0.96
    x, z = max(abs(b.places[0]), 0.2) if b.seat != "oval" else 0.36 * b.length, max(k * b.depth / 2 - inset, 0.07)
    return b.legs.build(x, z, height=b.under) + _rails(b, x, z)


def _rails(b: Bench, x: float, z: float) -> list[Piece]:
    """Bars under the seat, across and along."""
    low = b.under - 0.05
    across = mirrored(block((x - 0.015, low, -max(z, 0.45 * b.depth)), (x + 0.015, b.under, max(z, 0.45 * b.depth))), 0)
    along = mirrored(block((-x, low, z - 0.012), (x, b.under, z + 0.012)), 2) if b.style == "c" else block((-x, low, -0.02), (x, b.under, 0.02))
    return across + along


def _frames(b: Bench) -> list[Piece]:
    """At each support two legs with a bar under the seat, straight or spread."""
    s, z, y = b.size * 0.8, 0.46 * b.depth, b.under
    out = 0.0 if b.style == "a" else 0.12 * b.depth
    pieces = []
    for x in b.places:
        pieces += beam((x, y - s * 0.4, -z), (x, y - s * 0.4, z), (0.8 * s, 0.8 * s))
        for k in (-1, 1):
            pieces += post((x, 0, k * (z - s / 2 + out)), (x, y, k * (z - s / 2 - out)), (0.7 * s, s))
        if b.style == "c":
            pieces += beam((x, 0.25 * y, -z), (x, 0.25 * y, z), (0.5 * s, 0.7 * s))
    rail = 0.25 * y if b.style == "c" else y - 0.5 * s
    return pieces + beam((b.places[0], rail, 0), (b.places[-1], rail, 0), (0.4 * s, 0.7 * s))


def _loops(b: Bench) -> list[Piece]:
    """Bent tubes at the ends, that may rise over the seat as arms, or closed frames of flat bar."""
    r, z, y = max(0.3 * b.size, 0.014), 0.48 * b.depth, b.under
    pieces = []
    for x in b.places:
        if b.arms and x in (b.places[0], b.places[-1]):
            top = b.height + 0.16
            path = rounded_path([(x, 0, z * 1.1), (x, top, z * 0.7), (x, top, -z * 0.7), (x, 0, -z * 1.1)], 0.14, steps=5)
            pieces += tube(path, r, n=10)
        else:
            path = rounded_path([(x, r, z), (x, r, -z), (x, y - 0.5 * r, -z * 0.85), (x, y - 0.5 * r, z * 0.85)], 0.05, closed=True)
            pieces += tube(path, r, n=10, closed=True)
        pieces += block((x - r, y - 0.03, -z * 0.98), (x + r, y, z * 0.98))
    return pieces + mirrored(beam((b.places[0], y - 0.015, z * 0.7), (b.places[-1], y - 0.015, z * 0.7), (0.02, 0.024)), 2)


def _panels(b: Bench) -> list[Piece]:
    """Boards on edge, upright or spread, with a rail between them."""
    s, z, y = max(b.size * 0.6, 0.024), 0.47 * b.depth, b.under
    out = 0.0 if b.style != "b" else 0.06
    pieces = []
    for x in b.places:
        foot = x + np.sign(x) * out
        sole = [(foot + k * s / 2, 0, m * z) for k in (-1, 1) for m in (-1, 1)]
        head = [(x + k * s / 2, y, m * z * (0.8 if b.style == "c" else 1.0)) for k in (-1, 1) for m in (-1, 1)]
        pieces += [np.array(sole + head)]
    return pieces + block((b.places[0], y - 0.11, -0.014), (b.places[-1], y, 0.014))


def _blocks(b: Bench) -> list[Piece]:
    """Solid blocks, as of concrete."""
    wide, z, y = 0.05 + b.size, 0.44 * b.depth, b.under
    k = 0.75 if b.style == "a" else 1.0  # narrower at the foot
    pieces = [p for x in b.places for p in post((x, 0, 0), (x, y, 0), (2 * k * wide, 2 * k * z), end=(2 * wide, 2 * z))]
    if b.style == "c":
        pieces += [p for x in b.places for p in block((x - 1.2 * wide, 0, -z * 1.05), (x + 1.2 * wide, 0.06, z * 1.05))]
    return pieces


def _crossed(b: Bench) -> list[Piece]:
    """X-shaped ends and a beam through their middles."""
    s, z, y = b.size * 0.7, 0.45 * b.depth, b.under
    pieces = [p for x in b.places for k in (-1, 1) for p in post((x, 0, -k * z * 1.1), (x, y, k * z * 0.9), (s + 0.004 * k, 1.3 * s))]
    pieces += [p for x in b.places for p in block((x - s / 2, y - 0.03, -z), (x + s / 2, y, z))]
    return pieces + beam((b.places[0], 0.47 * y, 0), (b.places[-1], 0.47 * y, 0), (0.7 * s, s))


BASES = {"legs": _legs, "frames": _frames, "loops": _loops, "panels": _panels, "blocks": _blocks, "crossed": _crossed}
