"""What is odd about a cloud of points, in words for its owner. Nothing here changes a point."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from metasdf.geometry.nearest import kd_tree

Floats = NDArray[np.float64]

FLAT = 1e-6  # of the size: a thinner cloud is a plane or a line
COARSE = 1e-4  # of the size: coordinates in larger steps have lost their digits
NEIGHBOURS = 8  # groups of as many points, or of a thousandth of all, may be outliers
FAR = 8.0  # such a group has nothing else within so many times the distance that NEIGHBOURS points are usually apart
_DRAWN = 10_000  # points by which that distance is found
_CELLS = 1 << 20  # in each direction; what is beyond is all alike far


def find_outliers(x: Floats) -> NDArray[np.bool_]:
    """Which of the distinct points (N, 3) lie far from all others, alone or in small groups (N,): flying points of a scanner, a passer-by.

    None where they would be more than one in a hundred: such a cloud is uneven, or is several things. The same points give the same answer.
    """
    x = x - np.median(x, 0)
    x = np.clip(x / np.median(np.abs(x).max(1)), -1e150, 1e150)  # squares of much larger and smaller numbers are none
    drawn = x if len(x) <= _DRAWN else x[np.random.default_rng(0).permutation(len(x))[:_DRAWN]]
    few = min(NEIGHBOURS, len(drawn) - 1)
    apart = max(FAR * float(np.median(kd_tree(drawn).query(drawn, k=[few + 1])[0])), 1e-100)
    # Cells of that size hold many points each, so there are few of them, however many points: a tree of all points would take minutes.
    cell = np.clip(np.floor(x / apart), -_CELLS, _CELLS - 1).astype(np.int64) + _CELLS
    key, index, count = np.unique((cell[:, 0] << 42) + (cell[:, 1] << 21) + cell[:, 2], return_inverse=True, return_counts=True)
    pairs = kd_tree(np.stack((key >> 42, key >> 21 & 0x1FFFFF, key & 0x1FFFFF), 1)).query_pairs(1.0, p=np.inf, output_type="ndarray")
    around = count.copy()
    np.add.at(around, pairs[:, 0], count[pairs[:, 1]])
    np.add.at(around, pairs[:, 1], count[pairs[:, 0]])
    found = (around <= max(few, len(x) // 1000))[index.ravel()]
    return found if found.sum() <= max(few, len(x) // 100) else np.zeros(len(x), np.bool_)


def remarks(x: Floats) -> list[str]:
    """On points (N, 3) that are not all the same: do they span a space, and have they kept their digits?"""
    size = float(np.ptp(x, 0).max())
    centred = (x - x.mean(0)) / size
    extents = np.sort(np.ptp(centred @ np.linalg.eigh(centred.T @ centred)[1], 0))
    notes = []
    if extents[0] < FLAT * extents[2]:
        shape = "line" if extents[1] < FLAT * extents[2] else "plane"
        notes.append(f"all points lie on one {shape}, to {FLAT:g} of their size: of a solid they show little")
    with np.errstate(over="ignore"):
        single = x.astype(np.float32)
        step = float(np.spacing(np.abs(single).max()))
    if (single == x).all() and step > COARSE * size:
        notes.append(f"coordinates far from the origin, in single precision, come in steps of {step:.3g}, {step / size:.2%} of the size: "
                     "export them in double precision, or nearer to the origin")  # fmt: skip
    return notes
