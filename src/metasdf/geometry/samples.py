"""SDF samples at scattered points: where they cross zero."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import Delaunay, QhullError

from metasdf.errors import InputError


def zero_crossings(x: NDArray[np.floating], s: NDArray[np.floating]) -> NDArray[np.float64]:
    """Points (K, d) of the zero level set of samples s (N,) at x (N, d): linear interpolation on the edges of their Delaunay
    triangulation whose ends differ in sign, and the samples that are zero themselves. Raises InputError where there are none."""
    if (s > 0).all() or (s < 0).all():
        sign = "outside (positive)" if s[0] > 0 else "inside (negative)"
        raise InputError(f"all {len(s)} distances are {sign}, so the samples show no surface",
                         cause="unsigned distances, or samples far from the shape",
                         fix="give signed distances, negative inside, on both sides of the surface")  # fmt: skip
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
