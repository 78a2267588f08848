"""Batches of tasks from a store. A batch is a pure function of (seed, step): whatever the order of calls, the same numbers come out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from metasdf.data.item import opened
from metasdf.data.store import IMAGES, MESHES, Store
from metasdf.errors import MetaSDFError, UsageError
from metasdf.geometry.image import pixel_grid
from metasdf.tasks import RULES, ContextRule, Draw, ShapeSamples, TaskBatch, stack

_ORDER, _POINTS = 0, 1  # what a random stream is for: the order of an epoch, the points of one task
JUDGED = 16_384  # samples of a 3D shape that are kept for judging, a fifth where there are few


class Judged(NamedTuple):
    """Points x (M, d) and signed distances s (M, 1) at which a fitted field is judged."""

    x: NDArray[np.float32]
    s: NDArray[np.float32]


class Shapes(Protocol):
    """The shapes of a store, by row."""

    dim: int

    def part(self, index: int, rng: np.random.Generator, *, samples: int, points: int, view: bool) -> ShapeSamples:
        """At least so many samples and surface points, where there are so many. view: the points are those that one camera sees."""

    def judged(self, index: int) -> Judged: ...


class ImageShapes:
    """Shapes of a 2D store, read on demand from its memory-mapped arrays."""

    dim = 2

    def __init__(self, store: Store) -> None:
        if store.kind != IMAGES:
            raise UsageError(f"this data set holds {store.kind}, not 2D signed distance images", where=store.path,
                             fix="prepare one with: metasdf prepare mnist -o DATA")  # fmt: skip
        self._sdf, self._points, self._offsets = (store.arrays[k] for k in ("sdf", "contour_points", "contour_offsets"))
        self.resolution = int(self._sdf.shape[-1])
        self.grid = pixel_grid(self.resolution)

    def __getitem__(self, index: int) -> ShapeSamples:
        first, after = self._offsets[index : index + 2]
        return ShapeSamples(self.grid, np.asarray(self._sdf[index]).reshape(-1, 1), np.asarray(self._points[first:after]))

    def part(self, index: int, rng: np.random.Generator, *, samples: int, points: int, view: bool) -> ShapeSamples:
        if view:
            raise UsageError("a partial context needs depth views, which 2D shapes do not have", fix="use a dense or level-set experiment")
        return self[index]

    def judged(self, index: int) -> Judged:
        """Every grid point."""
        return Judged(self.grid, np.asarray(self._sdf[index]).reshape(-1, 1))


class MeshShapes:
    """Shapes of a 3D store. Their samples lie in random order, so any row and those after it are a fair draw: a task reads that part alone.

    The last ones are never drawn: a fitted field is judged there.
    """

    dim = 3

    def __init__(self, store: Store) -> None:
        self._store = store

    def part(self, index: int, rng: np.random.Generator, *, samples: int, points: int, view: bool) -> ShapeSamples:
        with opened(self._store.item(index)) as file:
            rows = file.get_slice("samples")
            drawn = _run(rng, rows, _length(rows) - _kept(_length(rows)), samples)
            if view:
                surface = _view(rng, file)
            else:
                cloud = file.get_slice("surface")
                surface = _run(rng, cloud, _length(cloud), points)
        return ShapeSamples(drawn[:, :3], drawn[:, 3:], surface[:, :3], surface[:, 3:])

    def judged(self, index: int) -> Judged:
        with opened(self._store.item(index)) as file:
            rows = file.get_slice("samples")
            found = rows[_length(rows) - _kept(_length(rows)) :]
        return Judged(found[:, :3], found[:, 3:])


def _kept(samples: int) -> int:
    return min(JUDGED, samples // 5)


def _length(rows: Any) -> int:
    return int(rows.get_shape()[0])


def _run(rng: np.random.Generator, rows: Any, among: int, n: int) -> NDArray[np.float32]:
    """n rows in a row, of the first `among`; all of these where they are fewer."""
    n = min(n, among)
    start = int(rng.integers(among - n + 1))
    return _rows(rows, start, start + n)


def _rows(rows: Any, start: int, stop: int) -> NDArray[np.float32]:
    """For safetensors no rows at the very end are out of bounds."""
    return rows[start:stop] if stop > start else np.zeros((0, int(rows.get_shape()[1])), np.float32)


def _view(rng: np.random.Generator, file: Any) -> NDArray[np.float32]:
    offsets = file.get_tensor("view_offsets")
    if len(offsets) < 2:
        raise ValueError("the shape has no depth views")
    k = int(rng.integers(len(offsets) - 1))
    return _rows(file.get_slice("views"), int(offsets[k]), int(offsets[k + 1]))


def shapes_of(store: Store) -> Shapes:
    return MeshShapes(store) if store.kind == MESHES else ImageShapes(store)


def check_dim(store: Store, dim: int, *, whose: str) -> None:
    """Raises UsageError where the shapes have another number of dimensions."""
    if (found := shapes_of(store).dim) != dim:
        raise UsageError(f"{whose} is for {dim}D shapes, the data set holds {found}D ones", where=store.path, cause="another data set than meant",
                         fix=f"give a --data of {dim}D shapes, or what is for {found}D, such as {'mnist' if found == 2 else 'tables'}-dense")


def rows_of(store: Store, split: str, category: str | None) -> NDArray[np.int64]:
    """Rows of a split, of one category if that is given. Raises UsageError where there is none."""
    rows = store.split(split)
    if category is None:
        return rows
    categories = [facts.get("category") for facts in store.meta.get("shapes", ())]
    found = rows[[categories[row] == category for row in rows]] if categories else rows[:0]
    if not len(found):
        known = ", ".join(sorted({str(categories[row]) for row in rows})) if categories else "no categories"
        raise UsageError(f"the split {split} holds no {category}", where=store.path, cause=f"it has: {known}",
                         fix="give another --data; or to evaluate --category NAME, to train --set category=NAME (none: all)")  # fmt: skip
    return found


class Loader:
    """Tasks of the shapes at `indices`: `batch(step)` for training, `tasks(indices)` for evaluation.

    seed, epoch and task key every draw, so a resumed, reordered or distributed run sees the same points.
    mirror: axes along which each draw is reflected, or not, by chance: distances stay what they are.
    rank, ranks: `batch` gives this process's part of the tasks; the parts of all processes, in turn, are the batch of one alone.
    """

    def __init__(
        self, store: Store, *, indices: NDArray[np.int64], rule: ContextRule, n_context: int, n_query: int, batch: int, seed: int,
        near: float = 0.0, mirror: Sequence[int] = (), rank: int = 0, ranks: int = 1,
    ) -> None:  # fmt: skip
        if not len(indices):
            raise UsageError("the split holds no shapes", where=store.path, fix="prepare the data set with more shapes")
        self.shapes, self.path = shapes_of(store), store.path
        self.indices = indices
        self.rule, self.n_context, self.n_query, self.near, self.mirror, self.seed = rule, n_context, n_query, near, list(mirror), seed
        self.batch_size = min(batch, len(self.indices))
        self.steps_per_epoch = max(1, len(self.indices) // self.batch_size)
        self.rank, self.ranks = rank, ranks
        if self.batch_size < ranks:
            raise UsageError(f"{ranks} processes share a batch of {self.batch_size} shapes", where=store.path, cause="some would have nothing to do",
                             fix=f"start at most {self.batch_size} processes, or a larger --set train.batch=N")  # fmt: skip

    def batch(self, step: int) -> TaskBatch:
        """This process's part of the batch of a global step; each epoch visits every shape once (less the remainder) in its own order."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng((self.seed, _ORDER, epoch)).permutation(len(self.indices))
        chosen = self.indices[order[position * self.batch_size : (position + 1) * self.batch_size]]
        return self.tasks(np.array_split(chosen, self.ranks)[self.rank], epoch=epoch)

    def tasks(self, indices: NDArray[np.int64], *, epoch: int = 0) -> TaskBatch:
        tasks = [int(i) for i in indices]
        return stack(tasks, [self._draw(task, epoch) for task in tasks])

    def _draw(self, task: int, epoch: int) -> Draw:
        rng = np.random.default_rng((self.seed, _POINTS, epoch, task))
        try:
            dense = self.rule == "dense"
            shape = self.shapes.part(task, rng, samples=self.n_query + (self.n_context if dense else 0), points=0 if dense else self.n_context,
                                     view=self.rule == "partial")  # fmt: skip
            draw = RULES[self.rule](rng, shape, n_context=self.n_context, n_query=self.n_query, near=self.near)
            return self._mirrored(draw, rng) if self.mirror else draw
        except MetaSDFError:
            raise
        except ValueError as error:
            more = "a higher --resolution" if self.shapes.dim == 2 else "more --samples"
            fix = ("prepare the meshes themselves" if self.rule == "oriented" else f"prepare the data set again with {more}, or train with fewer "
                   "points: --set n_context=N --set n_query=N --set n_test=N")  # fmt: skip
            raise UsageError(f"no {self.rule} context can be drawn: {error}", where=f"{self.path}, shape {task}",
                             cause="the data set is too coarse for so many points, or was made without contours or normals", fix=fix) from error

    def _mirrored(self, draw: Draw, rng: np.random.Generator) -> Draw:
        sign = np.ones(self.shapes.dim, np.float32)
        sign[self.mirror] = rng.choice((-1, 1), len(self.mirror))
        return draw._replace(context_x=draw.context_x * sign, query_x=draw.query_x * sign)
