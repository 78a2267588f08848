"""Aeroplanes: light aircraft, airliners, business jets, turboprops, fighters, gliders and biplanes.

The fuselage is 1 long, from x = -0.5 at the nose to 0.5 at the tail; y up, the span along z. Other lengths are in the same unit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from metasdf.data.procedural.airframe import Wing, fin, foil, pontoon, propeller, turbofan, wheel
from metasdf.data.procedural.pieces import Dice, Piece, ball, lathe, loft, mirrored, ring, rod, tube, vec


class Kind(NamedTuple):
    """How likely a kind of aeroplane is, and what its words may be: see `Dice.word`."""

    weight: float
    engine_place: str  # nose, wing (propellers), under (the wing), tail, inside or none
    engines: str
    blades: tuple[int, int]
    place: str  # of the wing: low, mid, high, or chin (mid, with the intake of a jet below it)
    tip: str  # of the wing: round, square or winglet
    tail: str  # low, cross, T, V, twin, canard or none (a fin only)
    gear: str  # none, fixed, tailwheel, spats or floats
    stores: str  # at the wing tips: none, tanks or missiles


KINDS = {
    "light": Kind(3.4, "nose", "1", (2, 4), "high low", "round round square", "low low low low low T cross V twin",
                  "fixed fixed fixed tailwheel spats spats floats none", "none"),
    "twin": Kind(0.8, "wing", "2", (2, 4), "low", "round square", "low low T cross", "fixed none none", "none tanks"),
    "airliner": Kind(3.8, "under", "2 2 4", (0, 0), "low low low low low high", "round winglet", "low", "none none none fixed", "none"),
    "rear-engined": Kind(1.2, "tail", "2 2 2 3", (0, 0), "low", "round round winglet", "T", "none none none fixed", "none"),
    "business": Kind(2, "tail", "2 2 2 2 2 2 3", (0, 0), "low", "round winglet", "T T T T cross", "none none none fixed",
                     "none none none none none tanks"),
    "turboprop": Kind(2.5, "wing", "2 2 2 2 4", (3, 6), "high high low", "round", "T T low low cross", "none none none fixed", "none"),
    "fighter": Kind(1.6, "inside", "1 2", (0, 0), "mid mid chin", "square", "low low low twin twin", "none", "none missiles"),
    "delta": Kind(1, "inside", "1 2", (0, 0), "mid mid chin", "square", "none none canard canard low", "none", "none missiles"),
    "glider": Kind(0.8, "none", "0", (0, 0), "mid", "round round winglet", "T T T T V low", "none", "none"),
    "biplane": Kind(1, "nose", "1", (2, 3), "low", "round", "low", "tailwheel tailwheel tailwheel spats floats", "none"),
}  # fmt: skip

# From and to, in thousandths. Columns as above: light, twin, airliner, rear-engined, business, turboprop, fighter, delta, glider, biplane.
NUMBERS: dict[str, list[tuple[int, int]]] = {
    "radius": [(62, 85), (62, 78), (43, 62), (43, 56), (54, 72), (50, 66), (45, 60), (45, 60), (42, 55), (62, 80)],
    "tallness": [(1050, 1300), (1050, 1250), (1000, 1120), (1000, 1080), (1000, 1120),
                 (1000, 1150), (950, 1200), (950, 1200), (1150, 1400), (1050, 1300)],
    "section": [(2400, 3600), (2200, 3200), (2000, 2000), (2000, 2000), (2000, 2000),
                (2000, 2600), (2000, 2600), (2000, 2600), (2000, 2000), (2100, 3200)],
    "nose": [(200, 300), (220, 320), (130, 200), (130, 200), (200, 280), (140, 210), (340, 440), (340, 440), (300, 360), (160, 240)],
    "tail": [(500, 620), (500, 600), (320, 420), (320, 400), (380, 460), (360, 460), (300, 400), (300, 400), (600, 640), (550, 640)],
    "point": [(1700, 2400), (1500, 2000), (1550, 1950), (1550, 1950), (1450, 1800),
              (1600, 2000), (1250, 1500), (1250, 1500), (1700, 2100), (1800, 2600)],
    "droop": [(100, 350), (100, 350), (250, 500), (250, 500), (200, 450), (250, 450), (0, 300), (0, 300), (200, 500), (0, 200)],
    "upsweep": [(300, 700), (300, 700), (400, 750), (300, 600), (300, 600), (400, 800), (0, 150), (0, 150), (300, 600), (300, 700)],
    "wing_x": [(-260, -160), (-230, -150), (-200, -120), (-60, 30), (-100, 0), (-160, -80), (-140, -40), (-140, -40), (-160, -100), (-260, -200)],
    "wing_span": [(580, 780), (580, 740), (400, 540), (380, 480), (400, 520), (460, 600), (260, 360), (260, 340), (900, 1250), (500, 660)],
    "wing_chord": [(190, 260), (190, 250), (170, 240), (180, 240), (180, 250), (120, 170), (260, 360), (420, 520), (110, 140), (160, 210)],
    "wing_taper": [(500, 1000), (450, 800), (220, 340), (250, 340), (300, 450), (420, 650), (220, 420), (60, 160), (350, 500), (850, 1000)],
    "wing_sweep": [(0, 60), (0, 80), (400, 660), (400, 600), (200, 550), (0, 100), (550, 1000), (1100, 1400), (10, 50), (0, 120)],
    "wing_dihedral": [(10, 100), (60, 110), (60, 130), (40, 80), (30, 80), (50, 110), (-60, 30), (-60, 30), (30, 70), (20, 60)],
    "wing_thickness": [(100, 140), (100, 140), (90, 130), (90, 120), (90, 130), (100, 140), (60, 90), (50, 80), (110, 140), (90, 120)],
    "wing_kink": [(0, 0), (0, 0), (300, 400), (300, 400), (250, 400), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0)],
    "fin_height": [(140, 190), (150, 190), (160, 210), (150, 190), (150, 200), (160, 220), (140, 190), (150, 190), (150, 180), (120, 160)],
    "fin_chord": [(120, 170), (130, 170), (150, 200), (150, 200), (150, 200), (140, 190), (170, 230), (200, 260), (100, 140), (120, 160)],
    "fin_sweep": [(200, 700), (400, 800), (600, 950), (600, 950), (600, 1000), (400, 800), (700, 1100), (700, 1100), (200, 450), (200, 600)],
    "tail_span": [(200, 270), (200, 260), (160, 220), (160, 210), (160, 210), (170, 230), (170, 210), (100, 130), (180, 240), (180, 240)],
    "tail_chord": [(100, 140), (100, 140), (90, 130), (90, 130), (90, 120), (90, 120), (120, 150), (110, 140), (70, 90), (110, 150)],
    "engine_radius": [(110, 140), (85, 110), (26, 36), (22, 28), (27, 36), (65, 85), (30, 30), (30, 30), (0, 0), (120, 150)],
    "canopy": [(180, 300), (180, 280), (0, 0), (0, 0), (0, 0), (0, 0), (100, 150), (100, 150), (160, 200), (100, 160)],
}  # fmt: skip
HEIGHT = {"low": -0.65, "mid": 0.2, "chin": 0.0, "high": 0.86}  # of the wing's root, relative to the fuselage


@dataclass(frozen=True)
class Plane:
    """All that makes one aeroplane; `Kind` says what the words may be."""

    kind: str
    radius: float  # half the width of the fuselage
    tallness: float  # height of the fuselage / its width
    section: float  # power of its superelliptic section
    nose: float  # length of the nose
    tail: float  # length of the tail cone
    point: float  # how round the nose is: 1 a cone, 2 an ellipsoid
    droop: float  # how far the nose's tip lies below the axis, relative to the radius
    upsweep: float  # how far the tail's tip lies above it
    wing: Wing
    tip: str
    place: str
    tail_kind: str
    fin_height: float
    fin_chord: float
    fin_sweep: float
    tail_span: float  # half
    tail_chord: float
    engines: int
    engine_place: str
    engine_radius: float  # of a propeller where there are any
    blades: int  # of a propeller, 0 for a disc
    canopy: float  # length of a bubble over the cockpit, 0 for none
    gear: str
    struts: bool
    stores: str

    @classmethod
    def draw(cls, dice: Dice) -> Plane:
        name = dice.pick(**{name: kind.weight for name, kind in KINDS.items()})
        kind, column = KINDS[name], list(KINDS).index(name)
        n = {field: dice.between(row[column][0] / 1000, row[column][1] / 1000) for field, row in NUMBERS.items()}
        place, engines = dice.word(kind.place), int(dice.word(kind.engines))
        w = {field.removeprefix("wing_"): n.pop(field) for field in list(n) if field.startswith("wing_")}
        if place == "high" and name != "light":
            w["dihedral"] = round(-0.4 * w["dihedral"] if name == "airliner" else 0.2 * w["dihedral"], 4)
        if engines == 4:
            n["engine_radius"] = round(0.8 * n["engine_radius"], 4)
        wing = Wing(y=round(HEIGHT[place] * n["radius"] * n["tallness"], 4), **w)
        tail = dice.word(kind.tail) if (name, place) != ("airliner", "high") else "T"
        return cls(kind=name, wing=wing, tip=dice.word(kind.tip), place=place, tail_kind=tail, engines=engines, engine_place=kind.engine_place,
                   blades=0 if dice.chance(0.25) else dice.count(*kind.blades), gear=dice.word(kind.gear), stores=dice.word(kind.stores),
                   struts=name == "light" and place == "high" and dice.chance(0.7), **n)  # fmt: skip

    def build(self) -> list[Piece]:
        pieces = self._fuselage() + self.wing.build(tip=self.tip) + self._tail() + ENGINES[self.engine_place](self) + self._gear() + self._stores()
        if self.canopy:
            x, top = -0.5 + 0.8 * self.nose if self.engine_place == "inside" else self.wing.x - 0.02, self.radius * self.tallness
            pieces += ball((x + 0.15 * self.canopy, 0.55 * top, 0), (0.62 * self.canopy, 0.85 * top, 0.72 * self.radius))
        else:  # a bulge where wing and fuselage meet
            y, chord = (-0.72 if self.place == "low" else 0.75) * self.radius * self.tallness, self.wing.chord
            pieces += ball((self.wing.x + 0.55 * chord, y, 0), (0.75 * chord, 0.42 * self.radius, 0.85 * self.radius))
        if self.struts:
            edge, chord = self.wing.at(0.5)
            foot = (self.wing.x + 0.35 * self.wing.chord, -0.6 * self.radius * self.tallness, 0.7 * self.radius)
            pieces += mirrored(rod(foot, edge + vec(0.35 * chord, 0, 0), 0.006, n=8), 2)
        return pieces + (self._upper_wing() if self.kind == "biplane" else [])

    def half(self, x: float) -> float:
        """Half the width of the fuselage at x."""
        ahead, behind = min((x + 0.5) / self.nose, 1.0), min((0.5 - x) / self.tail, 1.0)
        front = (1 - (1 - ahead) ** self.point) ** (1 / self.point)
        end = 0.72 if self.engine_place == "inside" else 0.1
        rear = end + (1 - end) * np.sin(behind * np.pi / 2) ** 0.85
        return float(self.radius * min(max(front, 0.08), rear))

    def middle(self, x: float) -> float:
        """Height of the middle of the fuselage at x."""
        ahead, behind = max(0.0, 1 - (x + 0.5) / self.nose), max(0.0, 1 - (0.5 - x) / self.tail)
        return float(self.radius * (self.upsweep * behind**1.6 - self.droop * ahead**1.8))

    def _fuselage(self) -> list[Piece]:
        places = [-0.5 + self.nose * t for t in (0, 0.04, 0.12, 0.25, 0.45, 0.7, 1)] + [0.5 - self.tail * t for t in (1, 0.8, 0.6, 0.4, 0.2, 0.05, 0)]
        rings = []
        for x in places:
            full = min(1.0, 2 * (x + 0.5) / self.nose, 2 * (0.5 - x) / self.tail)  # its ends are as high as wide
            tall = self.half(x) * (1 + (self.tallness - 1) * full)
            rings.append(ring((x, self.middle(x), 0), (0, tall, 0), (0, 0, self.half(x)), n=24, power=self.section))
        return loft(rings)

    def _tail(self) -> list[Piece]:
        x, height, sweep = 0.5 - self.fin_chord - 0.012, self.fin_height, self.fin_sweep
        root = self.half(x)
        y = self.middle(x) + 0.3 * root - 0.02
        up = {"T": 0.93, "cross": 0.45}.get(self.tail_kind)
        spot = (x + sweep * height * up, y + height * up) if up else (0.5 - self.tail_chord - 0.02, self.middle(0.46))
        if self.tail_kind == "canard":
            spot = (self.wing.x - 0.1, 0.4 * self.radius)
        flat = Wing(*spot, span=self.tail_span, chord=self.tail_chord, taper=0.55, sweep=0.8 * sweep, dihedral=0.05, thickness=0.09, kink=0.0)
        shape = {"height": height, "chord": self.fin_chord, "sweep": sweep}
        if self.tail_kind == "V":
            return mirrored(fin(x, y + 0.02 - 0.3 * root, lean=0.9 * height, **shape), 2)
        if self.tail_kind == "twin" and self.kind == "fighter":
            return flat.build(tip="square") + mirrored(fin(x - 0.03, y + 0.02 - 0.4 * root, z=0.5 * root, lean=0.2 * height, **shape), 2)
        if self.tail_kind == "twin":
            (edge_x, edge_y, z), _ = flat.at(0.95)
            small = fin(edge_x - 0.02, edge_y - 0.25 * height, z=z, height=0.8 * height, chord=0.8 * self.fin_chord, sweep=sweep)
            return flat.build(tip="square") + mirrored(small, 2)
        pieces = fin(x, y, **shape) + (flat.build() if self.tail_kind != "none" else [])
        if sweep > 0.5:  # a fillet before the fin
            ends = ((vec(x - 0.1, y, 0), 0.12), (vec(x + 0.03, y + 0.02 + 0.25 * height, 0), 0.05))
            pieces.append(np.concatenate([foil(edge, chord, thickness=0.01, across=vec(0, 0, 1)) for edge, chord in ends]))
        return pieces

    def _upper_wing(self) -> list[Piece]:
        lower = self.wing
        upper = replace(lower, x=lower.x - 0.05, y=lower.y + 3.0 * self.radius, span=lower.span * 1.06)
        pieces = upper.build()
        for t in (0.12, 0.72):
            (low, chord), (high, _) = lower.at(t), upper.at(t)
            pieces += mirrored([p for back in (0.2, 0.7) for p in rod(low + vec(back * chord, 0, 0), high + vec(back * chord, 0, 0), 0.0055, n=8)], 2)
        return pieces

    def _gear(self) -> list[Piece]:
        if self.gear == "none":
            return []
        bottom, spread = -self.radius * self.tallness, 2.0 * self.radius
        if self.gear == "floats":
            x, y = self.wing.x + 0.4 * self.wing.chord, bottom - 0.11
            legs = [p for at in (x - 0.13, x + 0.1) for p in rod((at, bottom + 0.4 * self.radius, 0.3 * self.radius), (at, y, spread), 0.006, n=8)]
            across = [p for at in (x - 0.13, x + 0.1) for p in rod((at, y, -spread), (at, y, spread), 0.005, n=8)]
            return mirrored(pontoon(vec(x, y, spread)) + legs, 2) + across
        x, y = self.wing.x + (0.1 if self.gear == "tailwheel" else 0.55) * self.wing.chord, bottom - 0.07
        side = tube([(x, bottom + 0.3 * self.radius, 0.3 * self.radius), (x, y, spread)], 0.006, n=8) + wheel(vec(x, y, spread), 0.026, 0.009)
        if self.gear == "spats":
            side += ball((x + 0.01, y + 0.004, spread), (0.055, 0.026, 0.013))
        at = 0.44 if self.gear == "tailwheel" else -0.5 + max(0.6 * self.nose, 0.09)
        low, small = (self.middle(at) - 1.1 * self.half(at) - 0.02, 0.013) if self.gear == "tailwheel" else (y + 0.004, 0.021)
        return mirrored(side, 2) + rod((at, self.middle(at), 0), (at, low, 0), 0.006, n=8) + wheel(vec(at, low, 0), small, 0.008)

    def _stores(self) -> list[Piece]:
        edge, chord = self.wing.at(0.985)
        if self.stores == "tanks":
            return mirrored(ball(edge + vec(0.45 * chord, 0, 0), (0.8 * chord, 0.022, 0.022)), 2)
        if self.stores == "missiles":
            return mirrored(lathe([(0, 0.003), (0.12, 0.0075), (1, 0.0075)], edge - vec(0.05, 0, 0), edge + vec(0.12, 0, 0), n=10), 2)
        return []


def _in_nose(p: Plane) -> list[Piece]:
    hub = 0.9 * p.half(-0.47)
    return propeller(vec(-0.5 - 0.9 * hub, p.middle(-0.5), 0), radius=p.engine_radius, blades=p.blades, hub=hub)


def _on_wing(p: Plane) -> list[Piece]:
    """Propellers on nacelles in the wing, one or two a side."""
    pieces: list[Piece] = []
    for t in (0.28, 0.55)[: p.engines // 2]:
        edge, chord = p.wing.at(t)
        r = 0.33 * p.engine_radius
        front, rear = edge - vec(0.55 * chord, 0.1 * r, 0), edge + vec(0.85 * chord, -0.1 * r, 0)
        pieces += lathe([(0, 0.6 * r), (0.08, 0.9 * r), (0.4, r), (0.75, 0.75 * r), (1, 0.2 * r)], front, rear, n=16)
        pieces += propeller(front - vec(0.9 * r, 0, 0), radius=p.engine_radius, blades=p.blades, hub=0.5 * r)
    return mirrored(pieces, 2)


def _under_wing(p: Plane) -> list[Piece]:
    """Turbofans on pylons under the wing, one or two a side."""
    pieces: list[Piece] = []
    for t in ((0.33,), (0.3, 0.56))[p.engines // 2 - 1]:
        edge, chord = p.wing.at(t)
        r, length = p.engine_radius, 3.4 * p.engine_radius
        mouth = edge - vec(0.62 * length, 1.25 * r, 0)
        pylon = foil(mouth + vec(0.3 * length, 0.85 * r, 0), 0.5 * length, thickness=0.012, across=vec(0, 0, 1))
        pieces += turbofan(mouth, radius=r, length=length)
        pieces.append(np.concatenate((pylon, foil(edge + vec(0.05 * chord, 0, 0), 0.6 * chord, thickness=0.012, across=vec(0, 0, 1)))))
    return mirrored(pieces, 2)


def _at_tail(p: Plane) -> list[Piece]:
    """Turbofans on both sides of the rear fuselage, a third in the fin's root."""
    r, length = p.engine_radius, 4.2 * p.engine_radius
    x = 0.52 - 0.95 * p.tail
    y, z = p.middle(x + length / 2) + 0.3 * p.radius, p.half(x + length / 2) + 1.1 * r
    inner = foil(vec(x + 0.2 * length, y, 0), 0.5 * length, thickness=0.014)
    outer = foil(vec(x + 0.25 * length, y, z - 0.5 * r), 0.4 * length, thickness=0.012)
    pieces = mirrored([*turbofan(vec(x, y, z), radius=r, length=length), np.concatenate((inner, outer))], 2)
    if p.engines == 3:
        top = 0.44 - p.fin_chord
        pieces += turbofan(vec(top, p.middle(top) + p.half(top) + 0.55 * r, 0), radius=r, length=length)
    return pieces


def _inside(p: Plane) -> list[Piece]:
    """Jets in the fuselage: intakes at its sides, or one below it, and nozzles at its end."""
    tall, r, x, tip = p.radius * p.tallness, 0.72 * p.radius, p.wing.x - 0.06, p.middle(0.5)
    spots = [(-0.1 * tall, 0.85 * p.radius), (-0.1 * tall, -0.85 * p.radius)] if p.place == "mid" else [(-0.85 * tall, 0.0)]
    pieces: list[Piece] = []
    for y, z in spots:
        shape = ((0, 0.9), (0.02, 1.0), (0.22, 1.0), (0.42, 0.6))
        pieces += loft([ring((x + at, y, z), (0, 0.6 * tall * k, 0), (0, 0, 0.5 * p.radius * k), n=16, power=4) for at, k in shape])
    for z, size in [(0.0, 0.9 * r)] if p.engines == 1 else [(0.52 * r, 0.62 * r), (-0.52 * r, 0.62 * r)]:
        pieces += lathe([(0, size), (0.6, size), (1, 0.72 * size)], (0.42, tip, z), (0.53, tip, z), n=18)
    return pieces


ENGINES = {"nose": _in_nose, "wing": _on_wing, "under": _under_wing, "tail": _at_tail, "inside": _inside, "none": lambda p: []}
