"""What aeroplanes are made of: wings, fins, propellers, turbofans, wheels and floats. The nose points to -x, y is up; 1 is the fuselage's length."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metasdf.data.procedural.pieces import Floats, Piece, around, lathe, loft, mirrored, moved, ring, rod, strips, unit, vec

FOIL = vec(0, 0, 0.025, 0.42, 0.1, 0.8, 0.3, 1.0, 0.65, 0.62, 1.0, 0.1).reshape(-1, 2)  # place along the chord, half thickness


@dataclass(frozen=True)
class Wing:
    """One half of a lifting surface. It starts on the axis of the fuselage; x and y are where its leading edge does."""

    x: float
    y: float
    span: float  # of the half
    chord: float  # at the root
    taper: float  # tip chord / root chord
    sweep: float  # how far the tip's leading edge lies behind the root's, relative to the half span
    dihedral: float  # how far the tip lies above the root, relative to the half span
    thickness: float  # relative to the chord
    kink: float  # place along the half span up to which the chord falls faster, 0 for none

    def at(self, t: float) -> tuple[Floats, float]:
        """The leading edge and the chord at t in 0..1 from root to tip."""
        inner = min(t / self.kink, 1.0) * 0.13 if self.kink else 0.0
        chord = self.chord * (1 - (1 - self.taper) * t - inner * (1 - t))
        return vec(self.x + self.sweep * self.span * t, self.y + self.dihedral * self.span * t, self.span * t), chord

    def section(self, t: float, *, scale: float = 1.0, shift: float = 0.0) -> Floats:
        edge, chord = self.at(t)
        return foil(edge + vec(shift, 0, 0), chord * scale, thickness=self.thickness * chord * (scale + 1) / 2)

    def build(self, *, tip: str = "round") -> list[Piece]:
        """Both halves. The tip is round, square, or a winglet."""
        sections = [self.section(t) for t in sorted({0.0, self.kink, 0.5, 0.97})]
        edge, chord = self.at(1.0)
        if tip == "winglet":
            up, thick = 0.13 * self.span, 0.7 * self.thickness * chord
            sections.append(foil(edge + vec(0, 0.02 * up, 0), chord, thickness=thick, across=unit((0, 0.7, 0.7))))
            sections.append(foil(edge + vec(0.9 * up, up, 0.23 * up), 0.45 * chord, thickness=thick, across=unit((0, 0.3, 0.95))))
        elif tip == "round":
            sections += [self.section(0.985, scale=0.93, shift=0.03 * chord), self.section(1.0, scale=0.62, shift=0.14 * chord)]
        else:
            sections.append(self.section(1.0))
        return mirrored(loft(sections), 2)


def foil(edge: Floats, chord: float, *, thickness: float, across: Floats | None = None) -> Floats:
    """A wing section from its leading edge backwards, its thickness along `across` (up where none); its trailing edge is blunt."""
    across = vec(0, 1, 0) if across is None else across
    half = np.maximum(FOIL[:, 1] * max(thickness, 0.009) / 2, 0.0018) * (FOIL[:, 0] > 0)
    along = edge + np.outer(FOIL[:, 0] * chord, (1, 0, 0))
    return np.concatenate((along + np.outer(half, across), along - np.outer(half, across)))


def fin(x: float, y: float, *, height: float, chord: float, sweep: float, lean: float = 0.0, z: float = 0.0) -> list[Piece]:
    """An upright surface; `lean` is how far its top stands out."""
    sections = []
    for t, scale in ((0.0, 1.0), (0.95, 1.0), (1.0, 0.85)):
        here = chord * (1 - 0.53 * t)
        edge = vec(x + sweep * height * t + (1 - scale) * here / 2, y + height * t, z + lean * t)
        sections.append(foil(edge, here * scale, thickness=0.1 * here, across=unit((0, -lean, height))))
    return loft(sections)


def propeller(at: Floats, *, radius: float, blades: int, hub: float) -> list[Piece]:
    """A spinner, whose tip is at `at`, with blades, or with the disc that they sweep where there are none."""
    spinner = lathe([(0, 0.12 * hub), (0.2, 0.55 * hub), (0.55, 0.88 * hub), (1, hub)], at, at + vec(2.2 * hub, 0, 0), n=14)
    middle = at + vec(1.5 * hub, 0, 0)
    if not blades:
        return spinner + rod(middle - vec(0.004, 0, 0), middle + vec(0.004, 0, 0), radius, n=28)
    sections = []
    for t, wide, turn in ((0.0, 0.5, 0.9), (0.35, 1.0, 0.6), (0.8, 0.8, 0.3), (1.0, 0.35, 0.2)):  # drawn along x, turning around y
        along, thick = vec(0, np.sin(turn), np.cos(turn)), vec(0, np.cos(turn), -np.sin(turn))
        sections.append(ring((t * radius, 0, 0), 0.16 * radius * wide * along, max(0.004, 0.03 * radius) * thick, n=8))
    return spinner + moved([piece[:, [1, 0, 2]] for piece in around(loft(sections), blades, start=0.3)], middle)


def turbofan(at: Floats, *, radius: float, length: float) -> list[Piece]:
    """An open duct around a fan with a cone, a nozzle behind; `at` is the middle of its mouth."""
    rows = ((0.0, 0.92, 0.8), (0.12, 1.0, 0.82), (0.45, 0.98, 0.8), (0.75, 0.8, 0.62))  # place along it, outer and inner radius
    turns = np.arange(18) * np.pi / 9
    spokes = [np.stack([vec(s * length, k * radius * np.cos(a), k * radius * np.sin(a)) for s, *ks in rows for k in ks]) for a in turns]
    duct = strips(spokes, [slice(2 * i, 2 * i + 4) for i in range(len(rows) - 1)], closed=True)
    core = [(0.1, 0.02), (0.2, 0.2), (0.27, 0.3), (0.29, 0.9), (0.45, 0.87), (0.75, 0.66), (0.8, 0.5), (1.0, 0.22)]
    return moved(duct + lathe([(s, k * radius) for s, k in core], (0, 0, 0), (length, 0, 0), n=18), at)


def wheel(at: Floats, radius: float, half: float) -> list[Piece]:
    return lathe([(0, 0.7 * radius), (0.25, radius), (0.75, radius), (1, 0.7 * radius)], at - vec(0, 0, half), at + vec(0, 0, half), n=16)


def pontoon(at: Floats) -> list[Piece]:
    """A float to land on water."""
    shape = [(-0.33, 0.15, 0.012), (-0.28, 0.65, 0.004), (-0.15, 1.0, 0.0), (0.05, 1.0, 0.0), (0.3, 0.35, 0.01)]
    return loft([ring(at + vec(x, rise, 0), (0, 0.028 * k, 0), (0, 0, 0.026 * k), n=14, power=2.6) for x, k, rise in shape])
