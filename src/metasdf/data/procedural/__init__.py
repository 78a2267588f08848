"""Shapes drawn by dice: tables, chairs, benches and aeroplanes without end, each a watertight solid that its numbers describe.

`procedural_shape("chairs", 7, seed=0)` is one mesh, the same on each call and whatever was drawn before it. Orientation is that of the real
models: y up; furniture has its front towards +z; aeroplanes have the nose towards -x and the span along z. The longest side is 1, the middle
of the bounding box at the origin.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Protocol

import numpy as np

from metasdf.data.procedural.benches import Bench
from metasdf.data.procedural.chairs import Chair
from metasdf.data.procedural.pieces import Dice, Piece
from metasdf.data.procedural.planes import Plane
from metasdf.data.procedural.tables import Table
from metasdf.errors import UsageError
from metasdf.geometry.mesh import Mesh
from metasdf.geometry.solids import union_of_hulls


class Model(Protocol):
    """What a category is: a frozen dataclass of plain numbers and words, drawn by dice, and the convex pieces that they mean."""

    @classmethod
    def draw(cls, dice: Dice) -> Model: ...

    def build(self) -> list[Piece]: ...


MODELS: dict[str, Any] = {"tables": Table, "chairs": Chair, "benches": Bench, "planes": Plane}
CATEGORIES = tuple(MODELS)


def procedural_model(category: str, index: int, *, seed: int) -> Any:
    """The parameters of one shape, as a frozen dataclass: `model.build()` makes its convex pieces, in its own units."""
    if category not in MODELS:
        raise UsageError(f"There are no procedural {category!r}", where="category", fix=f"use one of: {', '.join(CATEGORIES)}")
    if index < 0 or seed < 0:
        raise UsageError("Index and seed of a procedural shape are not negative", where=f"index={index}, seed={seed}", fix="count from 0")
    return MODELS[category].draw(Dice(np.random.default_rng((seed, CATEGORIES.index(category), index))))


def procedural_parameters(category: str, index: int, *, seed: int) -> dict[str, Any]:
    """The same as a dict, ready for JSON."""
    return asdict(procedural_model(category, index, seed=seed))


def procedural_pieces(category: str, index: int, *, seed: int) -> list[Piece]:
    """The convex pieces of one shape, point sets (n, 3), centred and scaled: `solids.sdf_of_hulls(pieces)` is its exact signed distance."""
    pieces = procedural_model(category, index, seed=seed).build()
    low, high = np.min([p.min(0) for p in pieces], 0), np.max([p.max(0) for p in pieces], 0)
    # Snapped to a grid, so that faces meant to lie in one plane do so in spite of rounding.
    return [np.round((p - (low + high) / 2) / (high - low).max() * 2**30) / 2**30 for p in pieces]


def procedural_shape(category: str, index: int, *, seed: int) -> Mesh:
    """One shape as a watertight mesh, faces outwards. Raises UsageError for a category that does not exist or a negative number."""
    return union_of_hulls(procedural_pieces(category, index, seed=seed))
