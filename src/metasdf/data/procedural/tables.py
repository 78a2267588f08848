"""Tables: dining, coffee, side, bar and writing tables on legs, pedestals, trestles, loops and panels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metasdf.data.procedural.joinery import Legs
from metasdf.data.procedural.pieces import (
    Dice,
    Piece,
    around,
    beam,
    block,
    cushion,
    lathe,
    loft,
    mirrored,
    moved,
    outline,
    post,
    rod,
    rounded_path,
    slab,
    tube,
    vec,
    waves,
)

SIZES = {  # width, depth, height in metres
    "dining": ((1.1, 2.2), (0.7, 1.05), (0.7, 0.78)),
    "coffee": ((0.7, 1.4), (0.45, 0.8), (0.3, 0.48)),
    "side": ((0.4, 0.65), (0.38, 0.6), (0.45, 0.7)),
    "bar": ((0.6, 0.9), (0.55, 0.8), (0.9, 1.1)),
    "desk": ((1.1, 1.8), (0.55, 0.85), (0.7, 0.78)),
    "console": ((0.9, 1.5), (0.3, 0.42), (0.72, 0.88)),
}
CORNER = {"rectangle": 1.0, "rounded": 0.9, "round": 0.7, "oval": 0.74, "hexagon": 0.62, "octagon": 0.72}  # how far out a leg may stand


@dataclass(frozen=True)
class Table:
    """All that makes one table. Metres; width along x, depth along z, who sits at a desk sits at +z."""

    use: str
    top: str
    width: float
    depth: float
    height: float
    thickness: float
    bevel: float
    corner: float
    base: str  # legs, pedestal, trestle, loops, panels, bow, cross, drum or drawers
    inset: float
    apron: float  # height, 0 for none
    shelf: float  # height relative to the table's, 0 for none
    legs: Legs
    size: float  # thickness of what stands
    spread: float  # how far apart or wide it stands, relative to the top
    style: str  # of pedestals, trestles and loops
    count: int  # of feet or drawers
    both: bool  # drawers on both sides, two pedestals

    @classmethod
    def draw(cls, dice: Dice) -> Table:
        use = dice.pick(dining=4, coffee=2.5, side=1.5, bar=1, desk=2.5, console=1)
        width, depth, height = (dice.between(*span) for span in SIZES[use])
        long = use in ("desk", "console")
        top = dice.pick(rectangle=5, rounded=2) if long else dice.pick(rectangle=4, rounded=2, round=2.5, oval=1.2, hexagon=0.3, octagon=0.4)
        if top in ("round", "hexagon", "octagon") and use != "dining":
            width = round(depth * dice.between(1.0, 1.12), 4)
        if top == "round":
            depth = width = round((width + depth) / 2, 4)
        thickness = dice.between(0.018, 0.05)
        small = use in ("side", "bar") or top in ("round", "octagon")
        base = {True: dice.pick(legs=3, drawers=4, panels=2, trestle=2, loops=2)}.get(use == "desk") or (
            dice.pick(legs=4, pedestal=4, bow=1.5, cross=1, drum=0.6, loops=0 if top == "round" else 1)
            if small
            else dice.pick(legs=7, pedestal=1.2, trestle=2.5, loops=2, panels=1.5, cross=0.6, drum=0.4)
        )
        base = "legs" if use == "console" and base in ("pedestal", "cross", "drum") else base
        return cls(use=use, top=top, width=width, depth=depth, height=height, thickness=thickness,
                   bevel=0.0 if dice.chance(0.5) else round(thickness * dice.between(0.15, 0.45), 4),
                   corner=round(depth * dice.between(0.06, 0.24), 4), base=base, inset=dice.between(0.0, 0.12),
                   apron=0.0 if dice.chance(0.4) else dice.between(0.05, 0.12),
                   shelf=dice.between(0.2, 0.5) if dice.chance(0.5 if use in ("coffee", "side", "console") else 0.06) else 0.0,
                   legs=Legs.draw(dice, size=(0.03, 0.085) if use != "side" else (0.024, 0.05), stretchers=0.15), size=dice.between(0.03, 0.09),
                   spread=dice.between(0.5, 0.85), style=dice.pick(a=1, b=1, c=1, d=1), count=dice.count(3, 5), both=dice.chance(0.3))  # fmt: skip

    def build(self) -> list[Piece]:
        plate = slab(outline(self.top, self.width, self.depth, corner=self.corner), self.height - self.thickness, self.height,
                     bevel=self.bevel, under=self.bevel / 2)  # fmt: skip
        return plate + BASES[self.base](self)

    @property
    def under(self) -> float:
        """The height up to which what stands reaches: into the top, so that they are one."""
        return self.height - self.thickness / 2

    def foothold(self, size: float) -> tuple[float, float]:
        """Where legs of that size stand, (+-x, +-z)."""
        k = CORNER[self.top]
        return k * self.width / 2 - size / 2 - self.inset * self.depth / 2, k * self.depth / 2 - size / 2 - self.inset * self.depth / 2


def _legs(t: Table) -> list[Piece]:
    legs = t.legs
    x, z = t.foothold(legs.size)
    out = legs.splay * t.under / np.sqrt(2) * 0.6  # feet that stand out begin further in
    x, z = x - out, z - out
    pieces = legs.build(x, z, height=t.under)
    if t.apron:
        low, thick = t.height - t.thickness - t.apron, 0.022
        pieces += mirrored(block((-x, low, z - thick / 2), (x, t.under, z + thick / 2)), 2)
        pieces += mirrored(block((x - thick / 2, low, -z), (x + thick / 2, t.under, z)), 0)
    if t.shelf and legs.kind != "hairpin":
        y = t.shelf * t.height
        grow = 1 - y / t.under
        spread = out / 0.6 * grow
        pieces += slab(outline("rectangle", 2 * (x + spread) + 0.01, 2 * (z + spread) + 0.01), y, y + 0.02)
    return pieces


def _pedestal(t: Table) -> list[Piece]:
    across = min(t.width, t.depth)
    reach, r = across * t.spread / 2, max(t.size * 0.7, 0.018)
    one = _column(t, r) + (_plinth(t, reach, r) if t.style in ("a", "b") else _feet(t, reach, r))
    double = t.both and t.width > 1.6 * t.depth
    return mirrored(moved(one, (t.width * 0.27, 0, 0)), 0) if double else one


def _column(t: Table, r: float) -> list[Piece]:
    turned = [(0.0, 1.6), (0.12, 1.7), (0.18, 0.9), (0.35, 1.35), (0.5, 1.0), (0.62, 0.8), (0.68, 1.2), (0.74, 0.85), (1.0, 1.5)]
    plain = [(0.0, 1.0), (0.9, 1.0), (1.0, 2.2)]
    trumpet = [(0.0, 1.8), (0.15, 1.2), (0.4, 0.9), (0.7, 1.0), (0.88, 1.6), (1.0, 3.0)]
    profile = {"a": plain, "b": waves(trumpet), "c": waves(turned), "d": plain}[t.style]
    return lathe([(s, r * k) for s, k in profile], (0, 0.01, 0), (0, t.under, 0), n=20)


def _plinth(t: Table, reach: float, r: float) -> list[Piece]:
    if t.style == "b":
        return lathe([(0, reach), (0.2, reach), (0.45, reach * 0.7), (0.75, reach * 0.35), (1, r)], (0, 0, 0), (0, 0.16 * t.height, 0), n=28)
    if t.top in ("rectangle", "rounded"):
        return slab(outline("rectangle", 2 * reach, 2 * reach), 0, 0.03, bevel=0.008)
    return lathe([(0, reach), (0.55, reach), (1, reach * 0.9)], (0, 0, 0), (0, 0.03, 0), n=28)


def _feet(t: Table, reach: float, r: float) -> list[Piece]:
    rise = 0.12 * t.height if t.style == "c" else 0.03
    n = 4 if t.top in ("rectangle", "rounded") else t.count
    size = max(0.024, 0.8 * r)
    arm = beam((0, rise + size / 2, 0), (reach, size * 0.4, 0), (size * 1.2, size), end=(size, size * 0.7))
    return around(arm, n, start=np.pi / 4 if n == 4 else 0.0)


def _trestle(t: Table) -> list[Piece]:
    x, z, s = t.width / 2 * max(t.spread, 0.62), t.depth / 2 * 0.8, t.size * 0.8
    y = t.under
    if t.style == "a":  # two legs that lean towards each other
        end = [p for k in (-1, 1) for p in post((x, 0, k * z), (x, y, k * z * 0.3), (s, 0.8 * s))]
        end += beam((x, 0.3 * y, -0.85 * z), (x, 0.3 * y, 0.85 * z), (0.6 * s, 0.8 * s))
        rail = 0.3 * y
    elif t.style == "b":  # a post on a foot
        end = block((x - s / 2, s / 2, -s), (x + s / 2, y, s)) + cushion((x - s / 2, 0, -z), (x + s / 2, s, z), 0.01)
        end += block((x - s / 2, y - s, -0.8 * z), (x + s / 2, y, 0.8 * z))
        rail = 0.4 * y
    elif t.style == "c":  # crossed
        end = post((x, 0, -z), (x, y, z * 0.85), (s, s)) + post((x, 0, z), (x, y, -z * 0.85), (0.9 * s, s))
        rail = 0.5 * y
    else:  # a sawhorse across
        end = [p for k in (-1, 1) for m in (-1, 1) for p in post((x + m * 0.14, 0, k * z), (x, y - s / 2, k * z * 0.8), (0.8 * s, 0.8 * s))]
        end += beam((x, y - s / 2, -z), (x, y - s / 2, z), (s, s))
        return mirrored(end, 0)
    return mirrored(end, 0) + beam((-x, rail, 0), (x, rail, 0), (0.6 * s, 1.1 * s))


def _loops(t: Table) -> list[Piece]:
    """Two closed frames of bar, upright or leaning, across the table or along it."""
    s = max(0.02, t.size * 0.6)
    x, z = t.foothold(s)
    low, high, lean = s / 2, t.height - t.thickness - s * 0.4, 0.0 if t.style in ("a", "b") else 0.12 * t.height
    narrow = 1.0 if t.style != "d" else 0.7
    corners = [(x, low, z), (x, low, -z), (x - lean, high, -z * narrow), (x - lean, high, z * narrow)]
    if t.style == "b":
        path = rounded_path(corners, 0.08, closed=True)
        return mirrored(tube(path, s / 2, n=10, closed=True), 0)
    section = (s, 1.6 * s) if t.style == "a" else (s, s)
    sides = [beam(a, b, section, up=(1, 0, 0)) for a, b in zip(corners, corners[1:] + corners[:1], strict=True)]
    joints = [piece for c in corners for piece in block(vec(*c) - 0.52 * s, vec(*c) + 0.52 * s)]
    return mirrored([p for side in sides for p in side] + joints, 0)


def _panels(t: Table) -> list[Piece]:
    s = max(0.02, t.size * 0.5)
    x, z = t.foothold(s)
    end = block((x - s / 2, 0, -z), (x + s / 2, t.under, z))
    deep = 0.35 + 0.5 * (t.spread - 0.5)
    rail = block((-x, t.under - deep * t.height, -0.7 * z - 0.01), (x, t.under, -0.7 * z + 0.01))
    shelf = slab(outline("rectangle", 2 * x, 1.6 * z), t.shelf * t.height, t.shelf * t.height + 0.02) if t.shelf else []
    return mirrored(end, 0) + rail + shelf


def _bow(t: Table) -> list[Piece]:
    """Bent rods that meet under the middle, as in a café."""
    reach, r, y = min(t.width, t.depth) / 2 * 0.82, max(0.011, t.size * 0.22), t.under
    waist = reach * (0.15 if t.style in ("a", "b") else 0.3)
    bow = [(reach, r, 0), (reach * 0.95, 0.08 * y, 0), (waist, 0.45 * y, 0), (waist, 0.6 * y, 0), (reach * 0.8, y, 0)]
    path = rounded_path(bow, 0.5 * y, steps=4)
    hoop = rounded_path([(waist * np.cos(a), 0.52 * y, waist * np.sin(a)) for a in np.arange(16) * np.pi / 8], 0.001, steps=1, closed=True)
    return around(tube(path, r, n=8), max(4, t.count), start=np.pi / 4) + tube(hoop, r, n=8, closed=True)


def _cross(t: Table) -> list[Piece]:
    """Two pairs of legs that cross under the middle."""
    x, z = t.foothold(t.size)
    s = t.size * 0.7
    pair = post((-x, 0, -z), (0.85 * x, t.under, 0.85 * z), (s, s)) + post((x, 0, z), (-0.85 * x, t.under, -0.85 * z), (s, s))
    return pair + [p * (1, 1, -1) for p in pair] + rod((0, 0.42 * t.under, 0), (0, 0.6 * t.under, 0), s)


def _drum(t: Table) -> list[Piece]:
    k = 0.5 + 0.5 * t.spread
    shape = outline(t.top, t.width * k, t.depth * k, corner=t.corner * k)
    return loft([np.insert(shape * (0.9 if t.style == "b" else 1.0), 1, 0.0, axis=1), np.insert(shape, 1, t.under, axis=1)])


def _drawers(t: Table) -> list[Piece]:
    """A writing desk: a cabinet of drawers on one side or both, else a panel or two legs."""
    wide, z, y = min(0.46, 0.3 * t.width), t.depth / 2 * 0.94, t.under
    x = t.width / 2 * 0.96
    floor = 0.08 if t.style in ("a", "b") else 0.03
    low = y - 0.42 if t.style == "d" else floor
    cabinet = block((x - wide, low, -z), (x - 0.003, y, z * 0.97))
    step = (y - t.thickness / 2 - low) / t.count
    for i in range(t.count):
        face = low + i * step
        cabinet += block((x - wide + 0.012, face + 0.012, z * 0.9), (x - 0.012, face + step - 0.012, z + 0.012))
        middle, front = vec(x - wide / 2, face + step * 0.55, z), z + 0.032
        cabinet += rod(middle, (middle[0], middle[1], front), 0.014) if t.style in ("a", "c") else cushion(
            (middle[0] - 0.06, middle[1] - 0.01, z), (middle[0] + 0.06, middle[1] + 0.01, front), 0.006)
    s = t.legs.size * 0.8
    posts = [p for k in (-1, 1) for p in block((x - s, 0, k * (z - s / 2) - s / 2), (x, y, k * (z - s / 2) + s / 2))]
    spots = [(m, k * (z - s)) for m in (x - s - 0.004, x - wide + 0.004) for k in (-1, 1)]
    under = [p for m, n in spots for p in block((m, 0, n - s / 2), (m + s, low + 0.02, n + s / 2))]
    cabinet += under if low < 0.2 else posts
    other = cabinet if t.both else posts if t.style in ("b", "d") else block((x - 0.025, 0, -z), (x, y, z))
    rail = block((-x + 0.01, y - 0.3, -z), (x - 0.01, y, -z + 0.02))
    return cabinet + [p * (-1, 1, 1) for p in other] + rail


BASES = {
    "legs": _legs, "pedestal": _pedestal, "trestle": _trestle, "loops": _loops, "panels": _panels, "bow": _bow, "cross": _cross, "drum": _drum,
    "drawers": _drawers,
}  # fmt: skip
