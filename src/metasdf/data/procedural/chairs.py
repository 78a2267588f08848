"""Chairs: kitchen and dining chairs, stools, bar stools, office chairs and upholstered armchairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metasdf.data.procedural.joinery import Back, Legs
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
    rod,
    rounded_path,
    slab,
    strips,
    tube,
    vec,
)


@dataclass(frozen=True)
class Chair:
    """All that makes one chair. Metres; who sits looks towards +z."""

    kind: str  # chair, stool, bar, office or armchair
    seat: str  # rectangle, trapezoid, rounded, round or shell (seat and back of one bent sheet)
    width: float
    depth: float
    height: float  # of the seat
    thickness: float
    cushion: float  # thickness of the upholstery on the seat, 0 for none
    base: str  # legs, sled, cantilever, star, disc or block
    legs: Legs
    back: Back | None
    arms: str  # none, posts, loops; of armchairs: broad, wings or tub (one wall all around)
    arm_height: float  # above the seat
    bar: float  # thickness of tubes
    style: str

    @classmethod
    def draw(cls, dice: Dice) -> Chair:
        kind = dice.pick(chair=6, stool=1, bar=1.4, office=1.6, armchair=2.2)
        if kind == "armchair":
            return cls._draw_armchair(dice)
        backless = kind == "stool" or (kind == "bar" and dice.chance(0.4))
        seat = dice.pick(rectangle=0.7, rounded=1, round=4) if backless else dice.pick(
            rectangle=2, trapezoid=2, rounded=2.5, round=0.8 if kind == "chair" else 0, shell=1.8)
        width = dice.between(0.38, 0.5) if kind in ("chair", "office") else dice.between(0.3, 0.42)
        depth = width if seat == "round" else round(width * dice.between(0.9, 1.1), 4)
        height = dice.between(0.62, 0.8) if kind == "bar" else dice.between(0.4, 0.5)
        base = {"office": "star", "bar": dice.pick(legs=4, disc=2.5, sled=1), "stool": dice.pick(legs=5, disc=1)}.get(kind) or dice.pick(
            legs=7, sled=1.5, cantilever=1, disc=0.5)
        tall = {"bar": (0.16, 0.34), "office": (0.42, 0.62)}.get(kind, (0.34, 0.58))
        kinds = {"panel": 2.0, "padded": 3.0, "bars": 1.0} if kind == "office" else None
        arms = "none"
        if kind == "office" or (kind == "chair" and seat not in ("round", "shell")):
            arms = dice.pick(none=1, posts=2) if kind == "office" else dice.pick(none=6, posts=1.5, loops=1)
        legs = Legs.draw(dice, size=(0.026, 0.048), stretchers=1.0 if kind == "bar" else 0.45)
        return cls(kind=kind, seat=seat, width=width, depth=depth, height=height, thickness=dice.between(0.018, 0.045),
                   cushion=dice.between(0.03, 0.08) if seat != "shell" and (kind == "office" or dice.chance(0.35)) else 0.0, base=base, legs=legs,
                   back=None if backless else Back.draw(dice, height=tall, kinds=kinds), arms=arms, arm_height=dice.between(0.18, 0.26),
                   bar=dice.between(0.02, 0.03), style=dice.pick(a=1, b=1, c=1))  # fmt: skip

    @classmethod
    def _draw_armchair(cls, dice: Dice) -> Chair:
        base, back = dice.pick(block=3, legs=2), Back.draw(dice, height=(0.38, 0.7))
        arms = dice.pick(broad=5, tub=2.5, none=0.7) if back.height < 0.55 else dice.pick(broad=3, wings=3, none=0.7)
        return cls(kind="armchair", seat="rectangle", width=dice.between(0.5, 0.66), depth=dice.between(0.5, 0.66), height=dice.between(0.36, 0.46),
                   thickness=dice.between(0.1, 0.24), cushion=dice.between(0.08, 0.16), base=base,
                   legs=Legs.draw(dice, size=(0.035, 0.06), stretchers=0), back=back, arms=arms, arm_height=dice.between(0.12, 0.26),
                   bar=dice.between(0.09, 0.2), style=dice.pick(a=1, b=1, c=1))  # fmt: skip

    def build(self) -> list[Piece]:
        if self.kind == "armchair":
            return _armchair(self)
        if self.seat == "shell":
            return _shell(self) + BASES[self.base](self) + ARMS[self.arms](self)
        shape = outline(self.seat, self.width, self.depth, corner=0.2 * self.depth)
        pieces = slab(shape, self.height - self.thickness, self.height, bevel=0.2 * self.thickness)
        if self.cushion:
            pieces += _pad(self)
        pieces += BASES[self.base](self)
        if self.back:
            pieces += _back(self)
        return pieces + ARMS[self.arms](self)

    @property
    def top(self) -> float:
        return self.height + self.cushion

    @property
    def under(self) -> float:
        return self.height - self.thickness / 2


def _pad(c: Chair) -> list[Piece]:
    low, high, bulge = c.height - 0.3 * c.thickness, c.top, min(0.5 * c.cushion, 0.03)
    if c.seat == "round":
        r = c.width / 2
        return lathe([(0, 0.95 * r), (0.4, 0.99 * r), (0.75, 0.95 * r), (1, 0.8 * r)], (0, low, 0), (0, high, 0), n=28)
    shape = outline("rounded" if c.seat == "rounded" else c.seat, 0.97 * c.width, 0.97 * c.depth, corner=0.2 * c.depth)
    rows = [(low, 1.0), (high - bulge, 1.0), (high - 0.4 * bulge, 0.97), (high, 0.88)]
    return [np.concatenate([np.insert(shape * k, 1, y, axis=1) for y, k in rows])]


def _spot(c: Chair) -> tuple[float, float]:
    """Where legs stand, (+-x, +-z)."""
    k = 0.66 if c.seat in ("round", "shell") else 0.82 if c.seat in ("trapezoid", "rounded") else 0.94
    inset = c.legs.size / 2 + 0.6 * c.legs.splay * c.under / np.sqrt(2)
    return max(k * c.width / 2 - inset, 0.06), max((k + 0.06) * c.depth / 2 - inset, 0.06)


def _back(c: Chair) -> list[Piece]:
    assert c.back is not None
    if c.kind == "office":
        rear, width, seat = -c.depth / 2 - 0.01, 0.92 * c.width, c.top + 0.04
        hold = c.back.at(0, 0.9 if c.back.kind == "bars" else 0.6, width=width, seat=seat, rear=rear, forward=-0.012)
        spine = rounded_path([(0, c.under - 0.01, 0), (0, c.under - 0.01, hold[2] - 0.02), hold], 0.09)
        return tube(spine, 0.022, n=10) + c.back.build(width, seat=seat, rear=rear, posts=c.back.kind == "bars")
    k = 0.7 if c.seat == "round" else 0.84 if c.seat == "trapezoid" else 0.9 if c.seat == "rounded" else 0.96
    rear = -c.depth / 2 * (0.78 if c.seat == "round" else 0.97) + c.back.thickness
    return c.back.build(k * c.width, seat=c.height, rear=rear, posts=True)


def _shell(c: Chair) -> list[Piece]:
    """A sheet bent from seat to back and hollowed across, as of moulded plastic or plywood."""
    assert c.back is not None
    b, half, z, thick = c.back, c.width / 2, c.depth / 2, 0.6 * c.thickness + 0.006
    rise, lean = b.height * 0.9, max(b.lean, 0.1) * b.height
    bends = [(z, c.height - 0.03, 0), (0.7 * z, c.height, 0), (-0.95 * z, c.height - 0.01, 0), (-z - lean, c.height + rise, 0)]  # (z, y)
    profile = rounded_path(bends, 0.16, steps=5)
    wide = np.interp(np.linspace(0, 1, len(profile)), [0, 0.15, 0.5, 0.8, 1], [0.85, 1, 0.96, 1 + b.flare, 0.72 + b.flare])
    rows = []
    for i, (at, w) in enumerate(zip(profile, wide, strict=True)):
        along = profile[min(i + 1, len(profile) - 1)] - profile[max(i - 1, 0)]
        normal = vec(0, -along[0], along[1]) / np.linalg.norm(along)  # up from the seat, forward from the back
        hollow = (0.5 * b.curve + 0.02) * min(1.0, i / 5)
        middle = [vec(u * w * half, at[1], at[0]) + normal * hollow * u * u for u in np.linspace(-1, 1, 7)]
        rows.append(np.stack([m + normal * s * thick / 2 for m in middle for s in (-1, 1)]))
    pieces = strips(rows, [slice(2 * k, 2 * k + 4) for k in range(6)])
    x, z = np.add(_spot(c), 0.014)
    return pieces + block((-x, c.under - 0.012, -z), (x, c.height, z))


def _legs(c: Chair) -> list[Piece]:
    x, z = _spot(c)
    return c.legs.build(x, z, height=c.under)


def _tubes(c: Chair, path: list[tuple[float, float, float]]) -> list[Piece]:
    return mirrored(tube(rounded_path(path, 0.07), c.bar / 2, n=10), 0)


def _sled(c: Chair) -> list[Piece]:
    """A bent tube on either side that lies on the ground."""
    r, z = c.bar / 2, 0.44 * c.depth
    x = (0.3 if c.seat in ("round", "shell") else 0.42) * c.width
    out, deep = (0.03, 1.12) if c.style == "a" else (0.0, 1.0)
    front = [(x - 0.08, c.under, z * 0.9), (x, c.under - r, z * 0.92), (x + out, r, deep * z)]
    path = front + [(x, y, -z) for x, y, z in reversed(front)]
    pieces = _tubes(c, path)
    return pieces + rod((-x - out, r, -0.6 * z), (x + out, r, -0.6 * z), 0.8 * r, n=10) if c.style == "b" else pieces


def _cantilever(c: Chair) -> list[Piece]:
    """A tube that carries the seat from the front only."""
    r, x, z = c.bar / 2 * 1.2, (0.26 if c.seat == "shell" else 0.44) * c.width, 0.48 * c.depth
    side = [(x, c.under - r, -z), (x, c.under - r, z), (x, r, z * 0.98), (x, r, -z), (0, r, -z)]
    return mirrored(tube(rounded_path(side, 0.06), r, n=10), 0)


def _star(c: Chair) -> list[Piece]:
    """A column on five arms with castors."""
    reach, wheel = 0.5 * max(c.width, 0.42) + 0.06, 0.028
    arm = beam((0, 0.125, 0), (reach, 2 * wheel + 0.012, 0), (0.05, 0.04), end=(0.03, 0.022))
    arm += rod((reach - 0.005, wheel, 0), (reach - 0.005, 2 * wheel + 0.015, 0), 0.01, n=8)
    arm += [p for k in (-1, 1) for p in rod((reach, wheel, k * 0.007), (reach, wheel, k * 0.027), wheel, n=14)]
    arm += rod((reach, wheel, -0.02), (reach, wheel, 0.02), 0.01, n=8)
    column = lathe([(0, 0.04), (0.3, 0.034), (0.32, 0.026), (0.94, 0.022), (0.95, 0.05), (1, 0.06)], (0, 0.08, 0), (0, c.under, 0), n=16)
    plate = block((-0.3 * c.width, c.under - 0.03, -0.2 * c.depth), (0.3 * c.width, c.under, 0.2 * c.depth))
    return around(arm, 5, start=np.pi / 10) + column + plate


def _disc(c: Chair) -> list[Piece]:
    """A column on a round foot, with a ring for the feet where it is high."""
    r, reach, y = 0.024, 0.5 * max(c.width, 0.36), c.under
    foot = lathe([(0, 1.0), (0.3, 0.98), (0.55, 0.6), (1, 0.1)], (0, 0, 0), (0, 0.07, 0), n=28)
    pieces = [p * (reach, 1, reach) for p in foot] + lathe([(0, r * 1.3), (0.5, r), (0.93, r), (1, 3 * r)], (0, 0.02, 0), (0, y, 0), n=16)
    if c.kind == "bar":
        a = np.arange(18) * np.pi / 9
        hoop = [(0.75 * reach * np.cos(t), 0.3 * y, 0.75 * reach * np.sin(t)) for t in a]
        pieces += tube(hoop, 0.01, n=8, closed=True) + rod((-0.76 * reach, 0.3 * y, 0), (0.76 * reach, 0.3 * y, 0), 0.009, n=8)
    return pieces


def _posts(c: Chair) -> list[Piece]:
    """Arms on a post each; on office chairs the post comes from below the seat."""
    x, y, s = c.width / 2, c.top + c.arm_height, max(0.022, 0.9 * c.legs.size) if c.base == "legs" else 0.024
    rear, front = -c.depth / 2 * 0.95, c.depth / 2 * 0.75
    pad = cushion((x - 0.012, y - 0.012, rear), (x + 0.045, y + 0.014, front), 0.01)
    if c.kind == "office":
        hold = tube(rounded_path([(0.5 * x, c.under, 0), (x + 0.03, c.under, 0), (x + 0.03, y, 0)], 0.03), 0.016, n=8)
        return mirrored(cushion((x, y - 0.015, -0.55 * c.depth * 0.6), (x + 0.06, y + 0.015, 0.3 * c.depth), 0.014) + hold, 0)
    return mirrored(pad + beam((x - s / 2 + 0.004, c.under, front - 0.06), (x + s / 4, y, front - 0.05), (s, s)), 0)


def _loops(c: Chair) -> list[Piece]:
    x, y, r = c.width / 2 + 0.002, c.top + c.arm_height, max(c.bar / 2, 0.011)
    rear, front = -c.depth / 2 * 0.95, c.depth / 2 * 0.7
    path = [(x - 0.02, y, rear), (x + 0.015, y, front), (x - 0.012, c.under, front - 0.03)]
    return mirrored(tube(rounded_path(path, 0.08), r, n=10), 0)


def _none(c: Chair) -> list[Piece]:
    return []


def _armchair(c: Chair) -> list[Piece]:
    """Body, seat cushion, back and broad arms, all of rounded blocks; the back leans."""
    assert c.back is not None
    if c.arms == "tub":
        return _tub(c)
    b, half, z, t = c.back, c.width / 2, c.depth / 2, c.bar
    arm = 0.0 if c.arms == "none" else t
    floor = c.height - c.cushion - c.thickness if c.base == "legs" else 0.05
    body = cushion((-half - 0.6 * arm, floor, -z), (half + 0.6 * arm, c.height - c.cushion * 0.6, z * 0.98), 0.03)
    seat = cushion((-half, c.height - c.cushion, -z * 0.9), (half, c.height, z * 1.03), 0.45 * c.cushion)
    deep = 0.13 + 0.3 * (t - 0.09)
    lean = max(b.lean, 0.08) * b.height
    width = half + (0.6 * arm if c.style != "c" else 0)
    rear = _leaning(width, floor, 0.0, c.height + 0.08, -0.02, rear=-z, deep=deep)
    rear += _leaning(width, c.height, -0.02, c.height + b.height, -lean, rear=-z, deep=deep)
    if c.style != "a":
        rear += _leaning(half * 0.94, c.height - 0.05, 0.09, c.height + 0.85 * b.height, 0.09 - 0.85 * lean, rear=-z, deep=deep)
    pieces = body + seat + rear + _broad_arms(c, floor)
    return pieces + _feet(c, floor)


def _tub(c: Chair) -> list[Piece]:
    """One wall, from an arm around the back to the other arm, on a body with a cushion."""
    assert c.back is not None
    half, z, t = c.width / 2 + 0.04, c.depth / 2, 0.6 * c.bar + 0.03
    floor = c.height - c.cushion - c.thickness if c.base == "legs" else 0.05
    power = 3.4 if c.style == "a" else 2.2
    sections = []
    for a in np.linspace(0, np.pi, 17):
        out = vec(np.sign(np.cos(a)) * abs(np.cos(a)) ** (2 / power), 0, -(np.sin(a) ** (2 / power)))
        rise = c.arm_height + (c.back.height - c.arm_height) * (np.sin(a) ** 3 if c.style != "b" else 0.25 * np.sin(a))
        high, flare = c.height + rise, 1.0 if c.style == "b" else 1.1
        foot, top = (out * (half * k, 1, z * 1.3 * k) + vec(0, y, 0.35 * z) for k, y in ((1.0, floor), (flare, high)))
        inward = -out * t
        rim = [(0.85, 0.2), (0.7, 0.0), (0.3, 0.0), (0.1, 0.2)]  # rounded on top
        sections.append(np.stack([foot, foot + inward, *(top + inward * k - vec(0, drop * t, 0) for k, drop in rim)]))
    front = [p for s in (sections[0], sections[-1]) for p in loft([s, s + vec(0, 0, 0.6 * z)])]
    sole = np.stack([section[0, ::2] for section in sections])
    shape = np.concatenate((sole, sole[[0, -1]] + (0, 0.58 * z))) - (0, 0.25 * z)
    body = moved(slab(0.97 * shape, floor, c.height - 0.6 * c.cushion), (0, 0, 0.25 * z))
    pad = moved(slab(shape * (1 - t / half, 0.96), c.height - c.cushion, c.height, bevel=0.3 * c.cushion), (0, 0, 0.25 * z))
    return loft(sections) + front + body + pad + _feet(c, floor)


def _leaning(half: float, y0: float, s0: float, y1: float, s1: float, *, rear: float, deep: float) -> list[Piece]:
    """A rounded plate from height y0 to y1, shifted by s0 and s1 along z."""
    flat = cushion((-half, y0, rear), (half, y1, rear + deep), min(0.4 * deep, 0.06))[0]
    shift = s0 + (s1 - s0) * (flat[:, 1] - y0) / (y1 - y0)
    return [flat + shift[:, None] * vec(0, 0, 1)]


def _broad_arms(c: Chair, floor: float) -> list[Piece]:
    if c.arms == "none":
        return []
    half, z, t, y = c.width / 2, c.depth / 2, c.bar, c.height + c.arm_height
    assert c.back is not None
    if c.style == "a":  # boxes
        arms = cushion((half - 0.01, floor, -z * 0.98), (half + t, y, z * 1.0), 0.03)
    elif c.style == "b":  # rolls on boards
        t = min(t, 0.14)
        arms = block((half - 0.01, floor, -z * 0.95), (half + 0.75 * t, y - 0.3 * t, z * 0.95))
        arms += rod((half + 0.4 * t, y - 0.5 * t, -z * 0.95), (half + 0.4 * t, y - 0.5 * t, z * 0.99), 0.62 * t, n=20)
    else:  # slanted: higher at the back
        arms = cushion((half - 0.01, floor, -z * 0.98), (half + 0.8 * t, y, z * 0.96), 0.035)
        arms = [p + np.where(p[:, 1] > c.height, (-p[:, 2] / z) * 0.35 * c.arm_height, 0)[:, None] * vec(0, 1, 0) for p in arms]
    if c.arms == "wings":
        lean = max(c.back.lean, 0.08) * c.back.height
        wing = cushion((half - 0.015, y - 0.06, -z), (half + 0.05, c.height + 0.95 * c.back.height, 0.34 - z), 0.022)
        arms += [p - np.outer((p[:, 1] - c.height) / c.back.height * lean, (0, 0, 1)) for p in wing]
    return mirrored(arms, 0)


def _feet(c: Chair, floor: float) -> list[Piece]:
    x, z = (0.33 * c.width, 0.3 * c.depth) if c.arms == "tub" else (c.width / 2 - 0.02, c.depth / 2 - 0.07)
    if c.base == "legs":
        return c.legs.build(x, z, height=floor + 0.03)
    return mirrored(mirrored(rod((x, 0, z), (x, floor + 0.03, z), 0.02, end=0.03), 0), 2)


BASES = {"legs": _legs, "sled": _sled, "cantilever": _cantilever, "star": _star, "disc": _disc}
ARMS = {"none": _none, "posts": _posts, "loops": _loops}
