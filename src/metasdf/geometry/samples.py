"""SDF samples at scattered points: whether they can be what they are said to be, and where they cross zero."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import Delaunay, QhullError

from metasdf.errors import InputError
from metasdf.geometry.nearest import kd_tree

MAX_SLOPE = 2.5  # |ds| / |dx| of neighbouring samples; 1 for a true distance, 2 across the edge of a pixel image (supplement 2.2.1)
PLAUSIBLE = 0.8  # the share of neighbours that must keep to it
NEIGHBOURS = 8  # of a sample, among which `crossings` looks for the other side of the surface
STEEP = 0.5  # |ds| / |dx| between them: below, the line grazes the surface, or crosses it more than once
MOST = 25_000  # samples on each side that are looked at: those nearest to the surface


def looks_signed(x: NDArray[np.floating], s: NDArray[np.floating]) -> bool:
    """Whether s (N,) may be signed distances at x (N, d): between most nearest neighbours it changes by no more than MAX_SLOPE times their gap."""
    rows = np.unique(np.column_stack((x - x.mean(0), s)), axis=0)  # the same sample twice says nothing
    if len(rows) < 3:
        return True
    gap, nearest = kd_tree(rows[:, :-1]).query(rows[:, :-1], k=2)
    # Of two points at one place either may be listed first: a row's neighbour is the column that is not itself.
    other = np.where(nearest[:, 0] == np.arange(len(rows)), nearest[:, 1], nearest[:, 0])
    change = np.abs(rows[:, -1] - rows[other, -1])
    return bool((change <= MAX_SLOPE * gap[:, 1] * (1 + 1e-6)).mean() >= PLAUSIBLE)


def zero_crossings(x: NDArray[np.floating], s: NDArray[np.floating]) -> NDArray[np.float64]:
    """Points (K, d) of the zero level set of samples s (N,) at x (N, d): linear interpolation on the edges of their Delaunay
    triangulation whose ends differ in sign, and the samples that are zero themselves. Raises InputError where there are none."""
    _both_sides(s)
    try:
        # Qhull lifts points to |x|^2, which would cost georeferenced coordinates their digits: only their shape matters, so it is normalised.
        simplices = Delaunay((x - x.mean(0)) / max(float(np.ptp(x, axis=0).max()), np.finfo(np.float64).tiny)).simplices
    except QhullError as error:
        raise InputError("the samples do not span the space", cause="all on one line or plane", fix="give samples around the shape") from error
    corners = simplices.shape[1]
    edges = np.concatenate([simplices[:, [i, j]] for i in range(corners) for j in range(i + 1, corners)])
    edges = np.unique(np.sort(edges, 1), axis=0)
    a, b = edges[s[edges[:, 0]] * s[edges[:, 1]] < 0].T
    t = (s[a] / (s[a] - s[b]))[:, None]
    return np.concatenate(((1 - t) * x[a] + t * x[b], x[s == 0]))


def crossings(x: NDArray[np.floating], s: NDArray[np.floating]) -> NDArray[np.float64]:
    """As `zero_crossings`, for true distances and many samples: between each sample and those of its nearest neighbours on the other side.

    Where the distance changes by less than half the gap nothing is interpolated. In 3D this is some thirty times as fast as a triangulation, and
    nearer to the surface: that one has long edges between parts of the shape.
    """
    _both_sides(s)
    order = np.argsort(np.abs(s), kind="stable")
    near = np.concatenate([order[side[order]][:MOST] for side in (s <= 0, s > 0)])
    x, s = x[near], s[near]
    nearest = kd_tree(x - x.mean(0)).query(x - x.mean(0), k=min(NEIGHBOURS + 1, len(x)))[1]
    pairs = np.stack((np.repeat(np.arange(len(x)), nearest.shape[1]), nearest.ravel()))
    a, b = np.unique(np.sort(pairs[:, s[pairs[0]] * s[pairs[1]] < 0], 0), axis=1)
    steep = np.abs(s[a] - s[b]) >= STEEP * np.linalg.norm(x[a] - x[b], axis=1)
    a, b = a[steep], b[steep]
    t = (s[a] / (s[a] - s[b]))[:, None]
    found = np.concatenate(((1 - t) * x[a] + t * x[b], x[s == 0]))
    if not len(found):
        raise InputError("no two neighbouring samples lie on the two sides of the surface", where=f"{len(s):,} samples",
                         cause="too few samples, or distances in other units than the coordinates",
                         fix="give more samples near the surface")  # fmt: skip
    return found


def _both_sides(s: NDArray[np.floating]) -> None:
    if (s > 0).all() or (s < 0).all():
        sign = "outside (positive)" if s[0] > 0 else "inside (negative)"
        raise InputError(f"all {len(s)} distances are {sign}, so the samples show no surface",
                         cause="unsigned distances, or samples far from the shape",
                         fix="give signed distances, negative inside, on both sides of the surface")  # fmt: skip
