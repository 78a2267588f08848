"""Inside or outside, of any triangle mesh: two methods that fail differently, and a choice between them.

Winding: faces are turned so that they face outwards, and the winding number counts how often they wrap around a point. Whole numbers on a
closed mesh; holes are closed by the surface that the remaining faces suggest. It needs neighbours that know each other: shared corners.
Visibility: of each side of each face, how much of the sky it sees; the side that sees more is the outer one. A point is inside if most rays
from it end on inner sides. Needs no neighbours; near large holes, and in deep hollows with holes, it errs more.

Both take a face and its copies, in any orientation, as one.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from metasdf.errors import UsageError
from metasdf.geometry.mesh import Mesh, areas, bounds, check, clean, face_normals, weld
from metasdf.geometry.native import Scene, WindingNumber, chunks, coherent
from metasdf.geometry.nearest import kd_tree
from metasdf.geometry.pieces import cut, soup, triangles_of
from metasdf.geometry.sampling import near_surface

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
SignMethod = Literal["auto", "winding", "visibility"]
Hollows = Literal["keep", "fill"]

RAYS = 32
BESIDE = 1e-4  # how far beside a face its two sides are looked at, in mesh sizes
SHEET = 0.4  # a side that sees this much of what the other one sees is outside too: both sides of a sheet or a bowl, not a ball with holes
OPEN = 0.25  # where even the better side sees less of the sky than this, sides that see alike are no sheet but leave the orientation in doubt
DOUBT = 0.1  # with more of the surface in doubt, the winding number is not trusted
PIECE = 1 / 32  # longest edge of the faces whose winding number is computed, in mesh sizes
TESTS = 2048  # points of each kind on which the methods are compared
# Sides of a face are looked at from four places of it, in turn.
_PLACES = np.array([[2, 2, 2], [4, 1, 1], [1, 4, 1], [1, 1, 4]]) / 6


class Sign(Protocol):
    def inside(self, x: Floats) -> Bools:
        """Whether points x (N, 3) are inside (N,)."""
        ...


class Faces(NamedTuple):
    """What both methods start from: welded, without flat faces, and coincident faces made one, facing as most of them did."""

    mesh: Mesh
    undecided: Bools  # (F,) made of copies that faced both ways equally often
    coincident: float  # share of the faces that were copies
    scene: Scene
    seen: Floats  # (F, 2) how much of the sky the front and the back see, 0 to 1


def look_at(mesh: Mesh) -> Faces:
    """Raises InputError for a mesh without a surface."""
    closed = clean(_close_seams(check(mesh)), coincident=False)
    mesh = closed if len(closed.faces) else clean(mesh, coincident=False)  # all of it smaller than a seam: a stray corner is very far away
    order = np.argsort(mesh.faces, 1, kind="stable")
    way = np.where((order[:, 1] - order[:, 0]) % 3 == 1, 1, -1)  # 1: turned into ascending order, -1: mirrored
    corners, copy = np.unique(np.take_along_axis(mesh.faces, order, 1), axis=0, return_inverse=True)
    net = np.bincount(copy.ravel(), way)  # ravel: NumPy 2.0 gives a column
    merged = Mesh(mesh.vertices, np.where((net < 0)[:, None], corners[:, ::-1], corners))
    scene = Scene(merged)
    return Faces(merged, net == 0, 1 - len(corners) / len(copy), scene, openness(merged, scene))


def _close_seams(mesh: Mesh) -> Mesh:
    """Corners that rounding has parted, by less than 1e-7 of the mesh's size, become one: neighbours know each other by them."""
    mesh = weld(mesh)
    n = len(mesh.vertices)
    # The eight nearest, not all: in a mesh of extreme proportions everything may be that near.
    near = kd_tree(mesh.vertices).query(mesh.vertices, k=8, distance_upper_bound=1e-7 * size_of(mesh))[1]
    rows, columns = np.nonzero(near < n)
    cluster = connected_components(coo_matrix((np.ones(len(rows)), (rows, near[rows, columns])), shape=(n, n)), directed=False)[1]
    return Mesh(mesh.vertices, np.unique(cluster, return_index=True)[1][cluster][mesh.faces])


def sphere(n: int) -> Floats:
    """n directions (n, 3), evenly spread, none along an axis: real models have their faces there."""
    i = np.arange(n) + 0.5
    z, angle = 1 - 2 * i / n, np.pi * (1 + 5**0.5) * i
    r = np.sqrt(1 - z * z)
    spiral = np.stack((r * np.cos(angle), r * np.sin(angle), z), 1)
    mirror = np.array((0.3, 0.5, 0.9)) / np.linalg.norm((0.3, 0.5, 0.9))
    return spiral - 2 * np.outer(spiral @ mirror, mirror)


def size_of(mesh: Mesh) -> float:
    return float(np.ptp(bounds(mesh), axis=0).max())


def openness(mesh: Mesh, scene: Scene) -> Floats:
    """How much of the sky the front and the back of each face see (F, 2), 0 to 1, weighted by the cosine to the normal."""
    normals, corners, beside = face_normals(mesh), mesh.vertices[mesh.faces], BESIDE / 10 * size_of(mesh)
    rows, seen, all_of_it = np.arange(len(normals)), np.zeros((len(normals), 2)), np.zeros((len(normals), 2))
    for k, direction in enumerate(sphere(RAYS)):
        slope = normals @ direction
        back = (slope < 0).astype(np.int64)
        origins = np.einsum("c,fcd->fd", _PLACES[k % 4], corners) + normals * np.where(back, -beside, beside)[:, None]
        free = ~scene.blocked(origins, np.broadcast_to(direction, origins.shape))
        seen[rows, back] += np.abs(slope) * free
        all_of_it[rows, back] += np.abs(slope)
    return seen / np.maximum(all_of_it, 1e-9)


class Winding:
    """The winding number of the faces, turned outwards.

    Neighbours are made to agree first, and each patch of them is turned as a whole, to the side that sees more of the sky: the faces of a deep
    hollow, which see little, follow those that see much. Patches whose two sides both see much are sheets: they bound nothing and are left out.
    Patches that see nothing at all keep the orientation they have, in relation to the visible ones: walls of a cavity, parts within parts;
    but a double face between two solids goes.
    """

    def __init__(self, given: Faces) -> None:
        faces, patch = coherent(given.mesh)
        still = np.where((faces == given.mesh.faces).all(1), 1, -1)  # -1: turned to agree with its neighbours
        area, (front, back) = areas(given.mesh), given.seen.T
        votes, as_given = np.bincount(patch, area * (front - back) * still), np.bincount(patch, area * still)
        upright = 1 if (votes * as_given).sum() >= 0 else -1  # -1: the whole model is inside out
        hidden = np.bincount(patch, area * (front + back)) == 0
        votes = np.where(hidden, upright * as_given, votes)
        total, most = np.bincount(patch, area), np.bincount(patch, area * np.maximum(front, back))
        alike, bright = np.bincount(patch, area * np.minimum(front, back)) > SHEET * most, most > OPEN * total
        self.doubtful = float(total[alike & ~bright].sum() / total.sum())  # share of the area whose orientation is a guess
        kept = ~((alike & bright)[patch] | (hidden[patch] & given.undecided))
        self.mesh = Mesh(given.mesh.vertices, np.where(votes[patch, None] < 0, faces[:, ::-1], faces)[kept])
        self.open_edges = _open_edges(self.mesh)
        self.simple = self.open_edges == 0 and patch.max() == 0 and bool(kept.all())  # closed and in one piece: all of it is surface
        # Small faces are far from most points, and one term stands for many of them: up to three times faster.
        pieces = cut(triangles_of(self.mesh), PIECE * size_of(given.mesh))[0]
        self._number = WindingNumber(soup(pieces)) if len(pieces) else None

    def inside(self, x: Floats) -> Bools:
        return np.zeros(len(x), np.bool_) if self._number is None else self._number(x) > 0.5


class Visibility:
    """The majority of rays from a point: each ends in the sky, on an outer side, or on an inner side."""

    def __init__(self, given: Faces) -> None:
        seen, self._scene, self._normals = given.seen, given.scene, face_normals(given.mesh)
        self._outer = np.where((seen > 0) & (seen >= SHEET * seen[:, ::-1]), 1, -1).astype(np.int8)

    def inside(self, x: Floats) -> Bools:
        result = np.zeros(len(x), np.bool_)
        for part in chunks(len(x)):
            votes = np.zeros(len(x[part]), np.int8)
            for direction in sphere(RAYS):
                face = self._scene.first_hits(x[part], np.broadcast_to(direction, x[part].shape)).face
                back = (self._normals[face] @ direction > 0).astype(np.int64)
                votes += np.where(face < 0, np.int8(1), self._outer[face, back])
            result[part] = votes < 0
        return result

    def enclosed(self, x: Floats) -> Bools:
        """Inside, and no ray at all ends in the sky (N,)."""
        left = np.arange(len(x))
        for direction in sphere(RAYS):
            left = left[self._scene.blocked(x[left], np.broadcast_to(direction, (len(left), 3)))]
        result = np.zeros(len(x), np.bool_)
        result[left] = self.inside(x[left])
        return result


class Filled:
    """Inside by winding numbers, or enclosed: the hollows that nobody sees are inside too, as in DeepSDF, which looks from outside only."""

    def __init__(self, winding: Winding, visibility: Visibility) -> None:
        self.winding, self.visibility = winding, visibility

    def inside(self, x: Floats) -> Bools:
        result = self.winding.inside(x)
        result[~result] = self.visibility.enclosed(x[~result])
        return result


class Choice(NamedTuple):
    """The sign to use, why, and how good the mesh is: the share of test points on which the two methods agree, or which are in a hollow."""

    sign: Sign
    method: Literal["winding", "visibility"]
    reason: str  # one sentence for the user
    agreement: float  # on points within some 1 % of the mesh's size of its surface: where it matters most
    agreement_uniform: float  # on points all over its bounding box
    hollow: float  # share of the bounding box in hollows: outside by winding numbers, but enclosed


def choose(given: Faces, method: SignMethod = "auto", *, hollows: Hollows = "keep") -> Choice:
    """Build both methods, compare them, take one. `auto` takes the winding number unless it would be a guess how faces are oriented.
    Raises UsageError for a wrong name."""
    if method not in ("auto", "winding", "visibility"):
        raise UsageError("No such way to find the sign", where=f"sign={method!r}", fix='use "auto", "winding" or "visibility"')
    if hollows not in ("keep", "fill"):
        raise UsageError("Hollows are kept or filled", where=f"hollows={hollows!r}", fix='use "keep" or "fill"')
    winding, visibility = Winding(given), Visibility(given)
    near, uniform = (_compare(winding, visibility, x) for x in _test_points(given.mesh))
    facts = f"{given.coincident:.0%} of the faces lie on others and count once; " * (given.coincident >= 0.005)
    facts += f"{uniform[1]:.1%} of the box is hollow and unseen; " * (uniform[1] >= 0.0005)
    facts += f"the methods agree on {near[0]:.1%} of points near the surface"
    if method != "auto":
        reason = "as asked"
    elif not len(winding.mesh.faces):
        method, reason = "winding", "every face is seen from both sides, so there is no inside"
    elif not winding.open_edges:
        method, reason = "winding", "the surface is closed, so winding numbers are whole"
    else:
        method = "winding" if winding.doubtful <= DOUBT else "visibility"
        reason = f"{winding.open_edges:.1%} of the edges are open and {winding.doubtful:.0%} of the surface could face either way, so " + (
            "winding numbers close the holes" if method == "winding" else "winding numbers would be a guess")
    sign: Sign = visibility if method == "visibility" else winding if hollows == "keep" or winding.simple else Filled(winding, visibility)
    return Choice(sign, method, f"{reason}; {facts}", near[0], uniform[0], uniform[1])


def _compare(winding: Winding, visibility: Visibility, x: Floats) -> tuple[float, float]:
    """Share of x on which the methods agree, hollows left aside, and the share in hollows: no defect of the mesh, but a matter of taste."""
    inside = winding.inside(x)
    hollow = visibility.enclosed(x) & ~inside
    return float(((inside == visibility.inside(x)) | hollow).mean()), float(hollow.mean())


def _test_points(mesh: Mesh) -> tuple[Floats, Floats]:
    """Points near the surface and all over its box, the same ones for the same mesh, always."""
    rng, size = np.random.default_rng(0), size_of(mesh)
    low, high = bounds(mesh)
    return near_surface(mesh, TESTS, rng=rng, spreads=(0.01 * size,)), rng.uniform(low - 0.05 * size, high + 0.05 * size, (TESTS, 3))


def _open_edges(mesh: Mesh) -> float:
    """Share of the edges that faces do not run through equally often in both directions; 0: winding numbers are whole everywhere."""
    ends = mesh.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    low, high = ends.min(1), ends.max(1)
    edge = np.unique(low * len(mesh.vertices) + high, return_inverse=True)[1]
    return float((np.bincount(edge, np.where(ends[:, 0] == low, 1, -1)) != 0).mean()) if len(ends) else 0.0
