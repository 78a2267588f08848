"""How far points are from a triangle mesh, inside and outside alike."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metasdf.geometry.mesh import Mesh
from metasdf.geometry.native import Tree


def unsigned_distance(mesh: Mesh, x: ArrayLike) -> NDArray[np.float64]:
    """Distance (N,) of points x (N, 3) to the nearest point of any face, to rounding: some 1e-15 of the mesh's size. Memory is bounded whatever N.

    For many calls build a `native.Tree` once. Raises InputError for a mesh or points that are not sound.
    """
    return np.sqrt(Tree(mesh).closest(x).squared)
