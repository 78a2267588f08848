"""Batches of tasks from a store. A batch is a pure function of (seed, step): whatever the order of calls, the same numbers come out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from metasdf.data.store import Store
from metasdf.errors import UsageError
from metasdf.geometry.image import pixel_grid
from metasdf.tasks import RULES, ContextRule, Draw, ShapeSamples, TaskBatch, stack

_ORDER, _POINTS = 0, 1  # what a random stream is for: the order of an epoch, the points of one task


class ImageShapes:
    """Shapes of a 2D store, read on demand from its memory-mapped arrays."""

    dim = 2

    def __init__(self, store: Store) -> None:
        if store.kind != "image-sdf-2d":
            raise UsageError(f"this data set holds {store.kind}, not 2D signed distance images", where=store.path,
                             fix="prepare one with: metasdf prepare mnist -o DATA")  # fmt: skip
        self._sdf, self._points, self._offsets = (store.arrays[k] for k in ("sdf", "contour_points", "contour_offsets"))
        self.resolution = int(self._sdf.shape[-1])
        self.grid = pixel_grid(self.resolution)

    def __getitem__(self, index: int) -> ShapeSamples:
        first, after = self._offsets[index : index + 2]
        return ShapeSamples(self.grid, np.asarray(self._sdf[index]).reshape(-1, 1), np.asarray(self._points[first:after]))


class Loader:
    """Tasks of the shapes at `indices`: `batch(step)` for training, `tasks(indices)` for evaluation.

    seed, epoch and task key every draw, so a resumed, reordered or distributed run sees the same points.
    rank, ranks: `batch` gives this process's part of the tasks; the parts of all processes, in turn, are the batch of one alone.
    """

    def __init__(
        self, store: Store, *, indices: NDArray[np.int64], rule: ContextRule, n_context: int, n_query: int, batch: int, seed: int,
        rank: int = 0, ranks: int = 1,
    ) -> None:  # fmt: skip
        if not len(indices):
            raise UsageError("the split holds no shapes", where=store.path, fix="prepare the data set with more shapes")
        self.shapes, self.path = ImageShapes(store), store.path
        self.indices = indices
        self.rule, self.n_context, self.n_query, self.seed = rule, n_context, n_query, seed
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
            return RULES[self.rule](rng, self.shapes[task], n_context=self.n_context, n_query=self.n_query)
        except ValueError as error:
            raise UsageError(f"no {self.rule} context can be drawn: {error}", where=f"{self.path}, shape {task}",
                             cause="the data set is too coarse for so many points, or was made without contours",
                             fix="prepare the data set again with a higher --resolution, or train with fewer points: "
                                 "--set n_context=N --set n_query=N --set n_test=N") from error  # fmt: skip
