"""The surface of a signed distance function as a mesh, asking the function only near the surface.

Marching cubes needs the corners of the cells that the surface crosses; on a grid of 256^3 these are about one in a hundred. They are found from
coarse to fine: a distance d at a corner says that no surface is nearer than d / L, where L bounds the slope of the field, so two opposite
corners may rule a whole cell out. Of what is left, the centres are asked, and the eight halves judged again, down to the cells of the grid.

A network has no slope that is known beforehand. L is 1.25 times the steepest one between the corners of the coarse grid (about 32 cells a side);
where a steeper one turns up later, the search starts again with that. A cell whose corners differ in sign is never ruled out, and wherever the
sign changes within a face, the cell on its other side is added: what hangs together is never cut. What can still be missed is a separate piece
of surface smaller than a coarse cell, or than any cell ruled out, in a field that claims a distance there of more than L times the true one.
A field that is steep everywhere rules nothing out: the search then asks for every corner of the grid once, as the dense way does, never more.
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
SDF = Callable[[Floats], NDArray[np.floating]]

CHUNK = 1 << 16  # points the function is given at once
COARSE, SAFETY = 32, 1.25  # cells a side of the first grid, about; how much steeper than seen the field may be
_LEAST = 1e-4  # of the mean distance at corners around the surface: nearer ones count as so far, or faces would have no area
_BITS = np.indices((2, 2, 2)).reshape(3, 8).T  # where corner k of a cell is, opposite to 7 - k; its part k is the one at that corner


class Extraction(NamedTuple):
    """mesh: the surface, faces outwards (towards positive values). evaluations: points at which the function was asked.
    watertight: every edge is in two faces. clipped: the surface leaves the cube, and the mesh has a border there.
    notes: what did not go as planned, in sentences."""

    mesh: Mesh
    evaluations: int
    watertight: bool
    clipped: bool
    notes: tuple[str, ...]


def extract(
    sdf: SDF, *, resolution: int = 128, low: float = -1.0, high: float = 1.0, method: Literal["sparse", "dense"] = "sparse", chunk: int = CHUNK
) -> Extraction:
    """The zero level set of `sdf` in the cube [low, high]^3, by marching cubes on `resolution` grid points along each side, ends included.

    sdf: points (N, 3) float64 -> values (N,), negative inside; or (N, 2), the second a distance to search by, for a field whose values are
    none: the output of a sign classifier beside that of a distance. It is given at most `chunk` points at once, half as many from then on
    when it runs out of memory. method: "dense" asks at all resolution^3 points and misses nothing; see the module for "sparse".

    Raises EmptySurfaceError if no value has another sign than the others, InputError if values are not finite, UsageError.
    """
    if method not in ("sparse", "dense"):
        raise UsageError("The method must be 'sparse' or 'dense'", where=f"method={method!r}")
    if resolution < 2 or chunk < 1 or not -math.inf < low < high < math.inf:
        raise UsageError("A grid needs at least two points a side, from a low to a high end, and a chunk one point",
                         where=f"resolution={resolution}, low={low}, high={high}, chunk={chunk}")  # fmt: skip
    grid = _Grid(sdf, np.linspace(low, high, resolution), chunk)
    cells, signed = _sparse(grid) if method == "sparse" else _dense(grid)
    if not len(cells):
        raise EmptySurfaceError(
            f"The field has no surface in the cube: values at {grid.evaluations:,} points go from {grid.range[0]:.3g} to {grid.range[1]:.3g}",
            where=f"[{low:g}, {high:g}]^3, {resolution} points a side, {method}",
            cause="the shape is outside the cube, thinner than the grid, or the field was not fitted to it",
            fix="a higher resolution, " + ("method='dense', " if method == "sparse" else "") + "a frame that shows the shape, or more steps",
        )
    if grid.chunk < chunk:
        grid.notes.append(f"out of memory with {chunk:,} points at once: went on with {grid.chunk:,}")
    corners, first, index = np.unique(grid.corners(cells, 1).T, return_index=True, return_inverse=True)
    values = signed.T.ravel()[first]
    least = _LEAST * np.abs(values).mean()
    values = np.where(np.abs(values) < least, np.where(values < 0, -least, least), values)
    mesh = marching_cubes(values, grid.points(corners), index.reshape(-1, 8))
    clipped = not grid.holds(_across(cells, signed, 1)).all()
    return Extraction(mesh, grid.evaluations, is_watertight(mesh), clipped, tuple(grid.notes))


class _Grid:
    """The grid's points by number (key), their values, each asked for once; and cells (C, 3) of any stride, by the place of their lowest corner.

    Where the stride does not divide the grid, cells at its upper end are cut off: their corners are those at the end.
    """

    def __init__(self, sdf: SDF, axis: Floats, chunk: int) -> None:
        self.sdf, self.axis, self.chunk = sdf, axis, chunk
        self.end, self.unit = len(axis) - 1, float(axis[1] - axis[0])
        self.known, self.values = np.empty(0, np.int64), np.empty((2, 0))  # in ascending order; signed, distance
        self.evaluations, self.range = 0, (math.inf, -math.inf)
        self.notes: list[str] = []

    def keys(self, places: Ints) -> Ints:
        return np.asarray((places[..., 0] * len(self.axis) + places[..., 1]) * len(self.axis) + places[..., 2])

    def places(self, keys: Ints) -> Ints:
        return np.stack(np.unravel_index(keys, (len(self.axis),) * 3), -1)

    def points(self, keys: Ints) -> Floats:
        return self.axis[self.places(keys)]

    def holds(self, cells: Ints) -> NDArray[np.bool_]:
        return ((cells >= 0) & (cells < self.end)).all(-1)

    def corners(self, cells: Ints, stride: int) -> Ints:
        """Their keys (8, C)."""
        return np.stack([self.keys(np.minimum(cells + stride * bits, self.end)) for bits in _BITS])

    def at(self, keys: Ints) -> Floats:
        """Signed values and distances (2, ...) at keys (...)."""
        new = np.setdiff1d(_distinct(keys), self.known, assume_unique=True)
        if len(new):
            known, values = np.concatenate((self.known, new)), np.concatenate((self.values, self.ask(new)), 1)
            order = np.argsort(known, kind="stable")
            self.known, self.values = known[order], values[:, order]
        return self.values[:, np.searchsorted(self.known, keys)]

    def ask(self, keys: Ints) -> Floats:
        values, start = np.empty((2, len(keys))), 0
        while start < len(keys):
            part = slice(start, min(start + self.chunk, len(keys)))
            n = part.stop - start
            try:
                found = np.asarray(self.sdf(self.points(keys[part])), np.float64)
            except (MemoryError, RuntimeError) as error:
                if n == 1 or not (isinstance(error, MemoryError) or "memory" in str(error)):
                    raise
                self.chunk = n // 2
                continue
            if found.shape not in ((n,), (n, 1), (n, 2)):
                raise UsageError("The function must give one value for each point, or a value and a distance",
                                 where=f"{n} points, result of shape {found.shape}")  # fmt: skip
            if not np.isfinite(found).all():
                raise InputError(f"{(~np.isfinite(found)).sum():,} of {found.size:,} values of the field are not finite",
                                 cause="a fit that diverged: rates or distances too large", fix="look at the field after fewer steps")  # fmt: skip
            found = found.reshape(n, -1)
            values[:, part] = found[:, 0], np.abs(found[:, -1])
            self.range = min(self.range[0], found[:, 0].min()), max(self.range[1], found[:, 0].max())
            self.evaluations += n
            start += n
        return values


def _sparse(grid: _Grid) -> tuple[Ints, Floats]:
    """All cells (A, 3) of the grid with a change of sign, in order, and the values at their corners (8, A): as the search finds them."""
    stride = 1 << max(0, round(math.log2(grid.end / COARSE)))
    coarse = stride * np.indices((-(-grid.end // stride),) * 3)
    slope = _slope(grid.at(grid.corners(coarse.reshape(3, -1).T, stride))[1]) / (stride * grid.unit)
    steepest = maximum_filter(slope.reshape(coarse.shape[1:]), 3, mode="nearest")
    bound = SAFETY * np.maximum(steepest, slope.max() / 2)
    while (found := _search(grid, coarse.reshape(3, -1).T, stride, bound)) is None:
        pass  # with the bound raised where the field was steeper
    cells, signed, added = found
    if added:
        grid.notes.append(f"distances did not show {added:,} of the cells, which hang together with others; separate ones may be missing, "
                          "method='dense' finds them")  # fmt: skip
    crossed = _changes(signed)
    order = np.flatnonzero(crossed)[np.argsort(grid.keys(cells[crossed]))]
    return cells[order], signed[:, order]


def _search(grid: _Grid, cells: Ints, stride: int, bound: Floats) -> tuple[Ints, Floats, int] | None:
    """From coarse cells (C, 3) the cells of the grid that may hold surface if no slope exceeds the `bound` for each coarse cell (K, K, K), the
    values at their corners, and how many the distances alone would have missed. None where a slope does exceed it: it is raised there."""
    coarse, added, steeper = stride, 0, False
    while True:
        before, side = len(cells), stride * grid.unit
        cells, signed, distance = _grown(grid, cells, stride)
        added += len(cells) - before
        place = tuple(cells.T // coarse)
        slope = _slope(distance) / side
        steeper |= bool((slope > bound[place]).any())
        np.maximum.at(bound, place, np.where(slope > bound[place], SAFETY * slope, 0))
        if stride == 1:
            return None if steeper else (cells, signed, added)
        radius = distance / (bound[place] * side)
        keep = _changes(signed) | _may_hold(radius[:4], radius[:3:-1]).all(0)
        stride //= 2
        cells, signed, radius, scale = cells[keep], signed[:, keep], 2 * radius[:, keep], 2 / (bound[place][keep] * side)
        middle, room = grid.at(grid.keys(np.minimum(cells + stride, grid.end)))
        keep = ((signed < 0) != (middle < 0)) | _may_hold(radius, room * scale)
        cells = np.concatenate([cells[kept] + stride * bits for kept, bits in zip(keep, _BITS, strict=True)])
        cells = cells[grid.holds(cells)]


def _grown(grid: _Grid, cells: Ints, stride: int) -> tuple[Ints, Floats, Floats]:
    """Those cells, and all that hang together with them through faces within which the sign changes: with values and distances (8, C)."""
    found, every = [], np.sort(grid.keys(cells))
    while len(cells):
        signed, distance = grid.at(grid.corners(cells, stride))
        found.append((cells, signed, distance))
        across = _across(cells, signed, stride)
        fresh = np.setdiff1d(_distinct(grid.keys(across[grid.holds(across)])), every, assume_unique=True)
        every, cells = np.sort(np.concatenate((every, fresh))), grid.places(fresh)
    return np.concatenate([f[0] for f in found]), np.concatenate([f[1] for f in found], 1), np.concatenate([f[2] for f in found], 1)


def _across(cells: Ints, signed: Floats, stride: int) -> Ints:
    """Places (M, 3), in the grid or not, of the cells behind those faces of cells (C, 3) within which the sign changes."""
    behind = []
    for axis in range(3):
        for end in (0, 1):
            step = np.zeros(3, np.int64)
            step[axis] = stride if end else -stride
            behind.append(cells[_changes(signed[_BITS[:, axis] == end])] + step)
    return np.concatenate(behind)


def _changes(signed: Floats) -> NDArray[np.bool_]:
    """Which columns (C,) of values (K, C) hold both signs."""
    inside = signed < 0
    return np.asarray(inside.any(0) & ~inside.all(0))


def _slope(distance: Floats) -> Floats:
    """Of cells (8, C), for one side length (C,): the norm over axes of the mean difference along the four edges."""
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


def _dense(grid: _Grid) -> tuple[Ints, Floats]:
    """As `_sparse`, from all points of the grid, one plane after the other."""
    m = len(grid.axis)
    cells, signed = [], []
    last = np.empty((0, 0))
    for x in range(m):
        here = grid.ask(np.arange(x * m * m, (x + 1) * m * m))[0].reshape(m, m)
        if x:
            both = np.stack((last, here))
            inside = (both < 0).sum(0)
            inside = inside[1:] + inside[:-1]
            inside = inside[:, 1:] + inside[:, :-1]
            y, z = np.nonzero((inside > 0) & (inside < 8))
            cells.append(np.stack((np.full_like(y, x - 1), y, z), 1))
            signed.append(np.stack([both[i, y + j, z + k] for i, j, k in _BITS]))
        last = here
    return np.concatenate(cells), np.concatenate(signed, 1)
