"""Triangles as an array (F, 3, 3), and cutting them until they are small."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from metasdf.geometry.mesh import Mesh, areas

Floats = NDArray[np.float64]


def triangles_of(mesh: Mesh) -> Floats:
    return mesh.vertices[mesh.faces]


def soup(triangles: Floats) -> Mesh:
    """A mesh in which every triangle has corners of its own."""
    return Mesh(triangles.reshape(-1, 3), np.arange(3 * len(triangles)).reshape(-1, 3))


def edges(triangles: Floats) -> Floats:
    """Lengths (F, 3) of the edges from each corner to the next."""
    return np.linalg.norm(np.roll(triangles, -1, 1) - triangles, axis=2)


def cut(triangles: Floats, longest: float) -> tuple[Floats, NDArray[np.int64]]:
    """Triangles halved until no edge is longer, or there are some 300,000, and the number of the triangle each piece is of."""
    longest = max(longest, float(np.sqrt(areas(soup(triangles)).sum() / 50_000)))
    whole, done = np.arange(len(triangles)), []
    while len(triangles):
        lengths = edges(triangles)
        far = lengths.max(1) > longest
        done.append((triangles[~far], whole[~far]))
        first = lengths[far].argmax(1)
        a, b, c = (triangles[far][np.arange(len(first)), (first + k) % 3] for k in range(3))
        middle = (a + b) / 2
        triangles, whole = np.concatenate((np.stack((a, middle, c), 1), np.stack((middle, b, c), 1))), np.tile(whole[far], 2)
    if not done:
        return triangles, whole
    return np.concatenate([pieces for pieces, _ in done]), np.concatenate([numbers for _, numbers in done])
