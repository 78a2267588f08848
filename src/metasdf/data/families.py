"""Near-copies: shapes so alike that one in training gives the other away in a test. Model collections hold many, under other names and liveries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import cdist

from metasdf.data.item import opened
from metasdf.data.store import Store
from metasdf.geometry.nearest import kd_tree

Floats = NDArray[np.float64]
NEAR = 0.01  # mean difference of the distances, in field units: half a percent of the cube's side. docs/preparation.md says what it separates
POINTS, PROBES = 20_000, 512
BLOCK = 1024


def families(files: Sequence[Path]) -> NDArray[np.int64]:
    """A number for each shape (n,), equal for those that near-copies connect."""
    found = descriptors(files)
    pairs = np.array(list(_near(found, found)), np.int64).reshape(-1, 2)
    return connected_components(coo_array((np.ones(len(pairs)), pairs.T), shape=(len(files),) * 2), directed=False)[1].astype(np.int64)


def near_copies(store: Store, rows: NDArray[np.int64], other: Store, other_rows: NDArray[np.int64]) -> list[tuple[str, str]]:
    """Names of pairs: a shape of one store, and one of the other that is a near-copy."""
    ours, theirs = (descriptors([s.item(int(row)) for row in chosen]) for s, chosen in ((store, rows), (other, other_rows)))
    return [(str(store.meta["shapes"][rows[i]]["name"]), str(other.meta["shapes"][other_rows[j]]["name"])) for i, j in _near(ours, theirs)]


def descriptors(files: Sequence[Path]) -> Floats:
    """Distances (n, PROBES), without sign, from points that are the same for all shapes to the surface of each; infinite where it is not known.

    Without sign, since near-copies may have holes in other places; and surfaces less than h apart have distances less than h apart everywhere.
    """
    probes = np.random.default_rng(0).uniform(-1, 1, (PROBES, 3))
    found = np.full((len(files), PROBES), np.inf)
    for row, file in zip(found, files, strict=True):
        with opened(file) as shape:
            rows = shape.get_slice("surface")
            n = min(POINTS, rows.get_shape()[0])
            if n:
                row[:] = kd_tree(rows[:n, :3]).query(probes)[0]
    return found


def _near(a: Floats, b: Floats) -> Iterator[tuple[int, int]]:
    """Rows i of a and j of b whose mean difference is below NEAR. Infinite ones are near none: their differences are infinite, or no numbers."""
    for start in range(0, len(a), BLOCK):
        near = np.argwhere(cdist(a[start : start + BLOCK], b, "cityblock") < NEAR * PROBES)
        yield from ((start + int(i), int(j)) for i, j in near)
