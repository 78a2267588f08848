"""The surface of a signed distance function as a mesh, asking the function only near the surface.

Marching cubes (Lorensen and Cline 1987) needs the corners of the cells that the surface crosses: of a grid of 256^3, about one in a hundred. They
are found from coarse to fine (after Kalra and Barr 1989): a distance d says that no surface is nearer than d / L, where L bounds how steep the
field is, so distances at two opposite corners may rule a cell out. Of a cell that is left, the centre is asked, and its eight parts are judged.

How steep a network is nobody knows beforehand. L is 1.25 times the steepest that differences show on the coarse grid (about 32 cells a side) next
to a place, and no less than half the steepest of all; where a steeper cell turns up, L is raised and the search starts again. No cell with a change
of sign is ever ruled out, and where the sign changes within a face, the cell behind it is added: surface that hangs together is never cut. What
can be missed is a separate piece, as small as the cells ruled out, where the field claims to be more than L times as far from it as it is. A
field too steep to rule anything out costs as much as the dense grid: no point is asked twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter

from metasdf.errors import EmptySurfaceError, InputError, UsageError
from metasdf.geometry.mesh import Mesh, is_watertight
from metasdf.geometry.native import marching_cubes

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CHUNK = 1 << 16  # points the function is given at once
COARSE, SAFETY = 32, 1.25  # about how many cells a side the search starts with; how much steeper the field may be than differences show
_LEAST = 1e-4  # of the mean distance at corners around the surface: a corner nearer than that counts as so far, or faces would have no area
_BITS = np.indices((2, 2, 2)).reshape(3, 8).T  # where corner k of a cell is, opposite to 7 - k, and part k, which shares that corner


class Extraction(NamedTuple):
    """mesh: the surface, its faces towards positive values. evaluations: number of points the function was asked at.
    watertight: every edge lies in two faces. clipped: the surface leaves the cube, where the mesh then has a border.
    notes: what did not go as it should, in sentences."""

    mesh: Mesh
    evaluations: int
    watertight: bool
    clipped: bool
    notes: tuple[str, ...]


def extract(
    sdf: Callable[[Floats], NDArray[np.floating]], *, resolution: int = 128, low: float = -1.0, high: float = 1.0,
    method: Literal["sparse", "dense"] = "sparse", chunk: int = CHUNK,
) -> Extraction:  # fmt: skip
    """The zero level set of `sdf` in the cube [low, high]^3, by marching cubes on `resolution` points along each side, both ends included.

    sdf: points (N, 3) float64 -> values (N,), negative inside; or (N, 2), where the second one is a distance to search by, of either sign, for
    values that are none (what a classifier says, beside a distance). It is given up to `chunk` points at once; if it runs out of memory, half as
    many from then on. method: "dense" asks at all resolution^3 points and misses nothing; what "sparse" may miss is said above.

    Raises EmptySurfaceError where the sign never changes, InputError for values that are not finite, UsageError.
    """
    if method not in ("sparse", "dense"):
        raise UsageError("The method must be 'sparse' or 'dense'", where=f"method={method!r}")
    if resolution < 2 or chunk < 1 or not -math.inf < low < high < math.inf:
        raise UsageError("A grid needs two points a side, a low and a high end, and chunks of a point or more",
                         where=f"resolution={resolution}, low={low}, high={high}, chunk={chunk}")  # fmt: skip
    grid = _Grid(sdf, np.linspace(low, high, resolution), chunk)
    cells, signed = _sparse(grid) if method == "sparse" else _dense(grid)
    if not len(cells):
        raise EmptySurfaceError(
            f"The field has no surface in the cube: its values go from {grid.range[0]:.3g} to {grid.range[1]:.3g}",
            where=f"[{low:g}, {high:g}]^3, {grid.evaluations:,} of {resolution}^3 points",
            cause="the shape is outside the cube or thinner than the grid, or the field was not fitted to it",
            fix="a higher resolution, " + ("method='dense', " if method == "sparse" else "") + "a frame that shows the shape, or more steps",
        )
    if grid.chunk < chunk:
        grid.notes.append(f"out of memory with {chunk:,} points at once: went on with {grid.chunk:,}")
    keys, first, corners = np.unique(grid.corners(cells, 1).T, return_index=True, return_inverse=True)
    values = signed.T.ravel()[first]
    least = _LEAST * np.abs(values).mean()
    values = np.where(np.abs(values) < least, np.where(values < 0, -least, least), values)
    mesh = marching_cubes(values, grid.points(keys), corners.reshape(-1, 8))
    clipped = not grid.holds(_behind(cells, signed, 1)).all()
    return Extraction(mesh, grid.evaluations, is_watertight(mesh), clipped, tuple(grid.notes))


class _Grid:
    """The points of the grid, by key; their values; and cells (C, 3) of any stride, each by the place of its lowest corner.

    Where the stride does not divide the grid, the cells at its upper end are cut off: what would be beyond it is at the end.
    """

    def __init__(self, sdf: Callable[[Floats], NDArray[np.floating]], axis: Floats, chunk: int) -> None:
        self.sdf, self.axis, self.chunk = sdf, axis, chunk
        self.end, self.unit = len(axis) - 1, float(axis[1] - axis[0])
        self.known, self.values = np.empty(0, np.int64), np.empty((2, 0))  # keys in ascending order; signed, distance
        self.evaluations, self.range = 0, (math.inf, -math.inf)
        self.notes: list[str] = []

    def keys(self, places: Ints) -> Ints:
        return np.asarray((places[..., 0] * len(self.axis) + places[..., 1]) * len(self.axis) + places[..., 2])

    def places(self, keys: Ints) -> Ints:
        return np.stack(np.unravel_index(keys, (len(self.axis),) * 3), -1)

    def points(self, keys: Ints) -> Floats:
        return self.axis[self.places(keys)]

    def holds(self, cells: Ints) -> NDArray[np.bool_]:
        return np.asarray(((cells >= 0) & (cells < self.end)).all(-1))

    def corners(self, cells: Ints, stride: int) -> Ints:
        """Their keys (8, C)."""
        return np.stack([self.keys(np.minimum(cells + stride * bits, self.end)) for bits in _BITS])

    def at(self, keys: Ints) -> Floats:
        """Signed values and distances (2, ...) at keys (...): each is asked for once."""
        new = np.setdiff1d(_distinct(keys), self.known, assume_unique=True)
        if len(new):
            known = np.concatenate((self.known, new))
            order = np.argsort(known, kind="stable")
            self.known, self.values = known[order], np.concatenate((self.values, self.ask(new)), 1)[:, order]
        return self.values[:, np.searchsorted(self.known, keys)]

    def ask(self, keys: Ints) -> Floats:
        values, start = np.empty((2, len(keys))), 0
        while start < len(keys):
            x = self.points(keys[start : start + self.chunk])
            try:
                found = np.asarray(self.sdf(x), np.float64)
            except (MemoryError, RuntimeError) as error:  # torch has a RuntimeError for it
                if len(x) == 1 or not (isinstance(error, MemoryError) or "memory" in str(error)):
                    raise
                self.chunk = len(x) // 2
                continue
            if found.shape not in ((len(x),), (len(x), 1), (len(x), 2)):
                raise UsageError("The function must give a value for each point, or a value and a distance", where=f"{x.shape} -> {found.shape}")
            if not np.isfinite(found).all():
                raise InputError(f"{(~np.isfinite(found)).sum():,} of {found.size:,} values of the field are not finite",
                                 cause="a fit that diverged: another kind of shape than the prior's, another axis up, or too many steps",
                                 fix="check axis and kind (--up, another prior), or use fewer --steps")  # fmt: skip
            found = found.reshape(len(x), -1)
            values[:, start : start + len(x)] = found[:, 0], np.abs(found[:, -1])
            self.range = min(self.range[0], found[:, 0].min()), max(self.range[1], found[:, 0].max())
            self.evaluations, start = self.evaluations + len(x), start + len(x)
        return values


def _dense(grid: _Grid) -> tuple[Ints, Floats]:
    """All cells (A, 3) of the grid with a change of sign, in order, and the values at their corners (8, A): from all points, plane after plane."""
    m, cells, signed, last = len(grid.axis), [], [], np.empty((0, 0))
    for x in range(m):
        here = grid.ask(np.arange(x * m * m, (x + 1) * m * m))[0].reshape(m, m)
        if x:
            both = np.stack((last, here))
            corners = np.stack([both[i, j : m - 1 + j, k : m - 1 + k].ravel() for i, j, k in _BITS])
            crossed = np.flatnonzero(_changes(corners))
            cells.append(np.stack((np.full_like(crossed, x - 1), *np.divmod(crossed, m - 1)), 1))
            signed.append(corners[:, crossed])
        last = here
    return np.concatenate(cells), np.concatenate(signed, 1)


def _sparse(grid: _Grid) -> tuple[Ints, Floats]:
    """As `_dense`, from points near the surface."""
    stride = 1 << max(0, round(math.log2(grid.end / COARSE)))
    coarse = stride * np.indices((-(-grid.end // stride),) * 3)
    slope = _slope(grid.at(grid.corners(coarse.reshape(3, -1).T, stride))[1]) / (stride * grid.unit)
    nearby = maximum_filter(slope.reshape(coarse.shape[1:]), 3, mode="nearest")
    bound = SAFETY * np.maximum(nearby, max(slope.max() / 2, 1e-9))  # a constant field has no slope to divide by
    while (found := _search(grid, coarse.reshape(3, -1).T, stride, bound)) is None:
        pass  # and again, with the bounds that it raised
    cells, signed, added = found
    if added:
        grid.notes.append(f"distances ruled out {added:,} cells that the surface reaches from others; separate pieces may be missing, "
                          "method='dense' finds them")  # fmt: skip
    crossed = np.flatnonzero(_changes(signed))
    order = crossed[np.argsort(grid.keys(cells[crossed]))]
    return cells[order], signed[:, order]


def _search(grid: _Grid, cells: Ints, stride: int, bound: Floats) -> tuple[Ints, Floats, int] | None:
    """From coarse cells (C, 3) the cells of the grid that may hold surface if no slope exceeds `bound` (K, K, K), one for each coarse cell; the
    values at their corners; how many the distances had ruled out. None where a slope does exceed its bound, which is raised."""
    coarse, added, steeper = stride, 0, False
    while True:
        before, side = len(cells), stride * grid.unit
        cells, (signed, distance) = _grown(grid, cells, stride)
        added += len(cells) - before
        place = tuple(cells.T // coarse)
        slope = _slope(distance) / side
        over = slope > bound[place]
        steeper |= bool(over.any())
        np.maximum.at(bound, place, np.where(over, SAFETY * slope, 0))
        if stride == 1:
            return None if steeper else (cells, signed, added)
        radius = distance / (bound[place] * side)
        keep = _changes(signed) | _may_hold(radius[:4], radius[:3:-1]).all(0)
        stride //= 2
        cells, signed, radius, scale = cells[keep], signed[:, keep], 2 * radius[:, keep], 2 / (bound[place][keep] * side)
        middle, room = grid.at(grid.keys(np.minimum(cells + stride, grid.end)))
        parts = ((signed < 0) != (middle < 0)) | _may_hold(radius, room * scale)
        cells = np.concatenate([cells[part] + stride * bits for part, bits in zip(parts, _BITS, strict=True)])
        cells = cells[grid.holds(cells)]


def _grown(grid: _Grid, cells: Ints, stride: int) -> tuple[Ints, Floats]:
    """Those cells and all that hang together with them through faces within which the sign changes, and values and distances (2, 8, C)."""
    found: list[tuple[Ints, Floats]] = []
    every = np.sort(grid.keys(cells))
    while len(cells) or not found:
        values = grid.at(grid.corners(cells, stride))
        found.append((cells, values))
        behind = _behind(cells, values[0], stride)
        fresh = np.setdiff1d(_distinct(grid.keys(behind[grid.holds(behind)])), every, assume_unique=True)
        every, cells = np.sort(np.concatenate((every, fresh))), grid.places(fresh)
    return np.concatenate([cells for cells, _ in found]), np.concatenate([values for _, values in found], -1)


def _behind(cells: Ints, signed: Floats, stride: int) -> Ints:
    """Places (M, 3), in the grid or not, of the cells behind those faces of cells (C, 3) within which the sign changes."""
    behind = []
    for axis in range(3):
        for end, step in ((0, -stride), (1, stride)):
            behind.append(cells[_changes(signed[_BITS[:, axis] == end])] + step * np.eye(3, dtype=np.int64)[axis])
    return np.concatenate(behind)


def _changes(signed: Floats) -> NDArray[np.bool_]:
    """Which columns (C,) of values (K, C) hold both signs."""
    inside = signed < 0
    return np.asarray(inside.any(0) & ~inside.all(0))


def _slope(distance: Floats) -> Floats:
    """How steep cells (8, C) are, for sides of length 1: the norm over axes of the mean difference along the four edges."""
    steps = [np.diff(distance.reshape(2, 2, 2, -1), axis=axis).mean((0, 1, 2)) for axis in range(3)]
    return np.asarray(np.linalg.norm(steps, axis=0))


def _may_hold(a: Floats, b: Floats) -> NDArray[np.bool_]:
    """Whether a unit cube has a point outside two balls around opposite corners, of radius a and b. The point at least a away from the one and
    farthest from the other lies along the edges: it fills one coordinate up to 1, then the next."""
    square = np.square(a)
    farthest = sum(np.square(1 - np.sqrt(np.clip(square - axis, 0, 1))) for axis in range(3))
    return np.asarray((square <= 3) & (np.square(b) <= farthest))


def _distinct(keys: Ints) -> Ints:
    """In ascending order; by sorting, several times as fast as numpy's unique."""
    keys = np.sort(keys, axis=None)
    return keys[np.diff(keys, prepend=-1) > 0]
