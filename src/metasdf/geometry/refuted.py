"""What observed signed distances say of a surface: where none can be."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from metasdf.geometry.mesh import Mesh, components, prune

Floats = NDArray[np.floating]

MARGIN = 0.02  # field units: a vertex is that far within the empty ball, which leaves room for the error of fit and grid (docs/extraction.md)
_AT_ONCE = 1 << 18  # pairs of vertices and distances, 6 MB


class Kept(NamedTuple):
    """The mesh without the pieces that the distances refute, and how many those were."""

    mesh: Mesh
    dropped: int


def drop_refuted(mesh: Mesh, x: Floats, s: Floats, *, margin: float = MARGIN) -> Kept:
    """Without the pieces that cannot be: a signed distance s (K,) at x (K, 3) says that no surface is within |s| of there. A piece goes if each
    of its vertices is nearer than |s| - margin to one of the points. The largest piece stays, whatever is said of it: a fit that is wrong as a
    whole should be seen."""
    number = components(mesh)
    sizes = np.bincount(number)
    far = np.abs(s) > margin
    x, reach = x[far], np.abs(s[far]) - margin
    faces = np.split(mesh.faces[np.argsort(number, kind="stable")], np.cumsum(sizes)[:-1])  # of each piece
    gone = [piece for piece in np.flatnonzero(np.arange(len(sizes)) != sizes.argmax())
            if len(x) and _within(mesh.vertices[np.unique(faces[piece])], x, reach)]  # fmt: skip
    return Kept(prune(Mesh(mesh.vertices, mesh.faces[~np.isin(number, gone)])), len(gone)) if gone else Kept(mesh, 0)


def _within(vertices: Floats, x: Floats, reach: Floats) -> bool:
    """Whether each vertex lies in a ball; the first alone tells most pieces that stay."""
    step = max(1, _AT_ONCE // len(x))
    parts = [vertices[:1], *(vertices[start : start + step] for start in range(1, len(vertices), step))]
    return all(bool((np.linalg.norm(part[:, None] - x, axis=2) < reach).any(1).all()) for part in parts)
