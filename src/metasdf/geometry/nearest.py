"""Nearest points: scipy's k-d tree, safe where denormal numbers count as zero."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

TINY = 1e-250


def kd_tree(points: NDArray[np.number]) -> cKDTree:
    """Of points (N, d). A coordinate that is exactly 0 is TINY in it.

    Where many points share a coordinate, scipy parts them right after it. The number after 0 is denormal; our commands have the processor flush such
    numbers to 0, and then the two sides never part: the recursion ended in a crash, with a mesh that has a face in a plane through the origin.
    """
    x = np.asarray(points, np.float64)
    return cKDTree(np.where(np.abs(x) < TINY, TINY, x))
