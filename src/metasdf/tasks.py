"""What a task is: samples to learn from (context) and samples to be judged by (query), and the rules that draw both from a shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Observations(NamedTuple):
    """Coordinates x (*B, N, d) and signed distances y (*B, N, 1), negative inside, both in field units."""

    x: Tensor
    y: Tensor

    def to(self, device: torch.device) -> Observations:
        return Observations(self.x.to(device), self.y.to(device))


class TaskBatch(NamedTuple):
    """B tasks: their indices in the data set (B,), what is observed of each, and what is asked."""

    task: Tensor
    context: Observations
    query: Observations

    def to(self, device: torch.device) -> TaskBatch:
        return TaskBatch(self.task.to(device), self.context.to(device), self.query.to(device))


class ShapeSamples(NamedTuple):
    """All that is known of one shape: x (M, d) with its SDF s (M, 1), and points on the zero level set (K, d), of 3D shapes with outward unit
    normals (K, d), zero where only points are known."""

    x: np.ndarray
    s: np.ndarray
    surface: np.ndarray
    normals: np.ndarray | None = None


class Draw(NamedTuple):
    """Context and query of one shape as arrays, before they are stacked into a batch."""

    context_x: np.ndarray
    context_y: np.ndarray
    query_x: np.ndarray
    query_y: np.ndarray


ContextRule = Literal["dense", "levelset", "partial", "oriented"]


def draw_surface(rng: np.random.Generator, surface: np.ndarray, n: int) -> np.ndarray:
    """n points of the zero level set in random order: a subset where there are more; where there are fewer, each as often as any other, or
    once more. Never padding, and no chance weights, which drawing with replacement would give the points of a small shape."""
    k = len(surface)
    if not k:
        raise ValueError("the shape has no surface points")
    return surface[rng.permutation(np.concatenate([np.tile(np.arange(k), n // k), rng.permutation(k)[: n % k]]))]


NEAR = 1 / 16  # |s| up to which a sample lies near the surface: 4 pixels of a 64 x 64 image


def dense(rng: np.random.Generator, shape: ShapeSamples, *, n_context: int, n_query: int, near: float = 0.0) -> Draw:
    """Context and query are disjoint SDF samples of the same shape. near: this share of the query lies near the surface, where there are so many.
    Raises ValueError if the shape has fewer than both together."""
    if n_context + n_query > len(shape.x):
        raise ValueError(f"{n_context} context + {n_query} query points asked of a shape with {len(shape.x)} samples: "
                         "disjoint sets need fewer points or a finer grid")  # fmt: skip
    index = rng.permutation(len(shape.x))
    c, q = index[:n_context], _nearest_first(index[n_context:], shape.s, round(near * n_query))[:n_query]
    return Draw(shape.x[c], shape.s[c], shape.x[q], shape.s[q])


def levelset(rng: np.random.Generator, shape: ShapeSamples, *, n_context: int, n_query: int, near: float = 0.0) -> Draw:
    """Context: points on the zero level set, all with distance 0, no normals. Query: SDF samples anywhere; near as in `dense`."""
    points = draw_surface(rng, shape.surface, n_context)
    q = _query(rng, shape, n_query, near)
    return Draw(points, np.zeros((n_context, 1), points.dtype), shape.x[q], shape.s[q])


OFFSET = 0.02  # field units: how far a point with a normal is moved at most; as far inwards as outwards, or thin parts would count for little


def moved(rng: np.random.Generator, points: np.ndarray, normals: np.ndarray, *, unit: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Points with normals (N, d) as observations of the distance: each goes along its normal, by anything up to OFFSET to either side, and that
    way (N, 1) is its signed distance, if nothing else of the shape is nearer; behind a sheet, which has no inside, it is not.
    unit: the length of a field unit in that of the points."""
    s = (unit * rng.uniform(-OFFSET, OFFSET, (len(points), 1))).astype(points.dtype)
    return points + s * normals, s


def oriented(rng: np.random.Generator, shape: ShapeSamples, *, n_context: int, n_query: int, near: float = 0.0) -> Draw:
    """Context: points on the zero level set that have normals, see `moved`. Query: as of `levelset`. Raises ValueError without normals."""
    if shape.normals is None or not shape.normals.any():
        raise ValueError("its surface points have no normals")
    rows = draw_surface(rng, np.concatenate((shape.surface, shape.normals), 1), n_context)
    context = moved(rng, *np.split(rows, 2, 1))
    q = _query(rng, shape, n_query, near)
    return Draw(*context, shape.x[q], shape.s[q])


def _query(rng: np.random.Generator, shape: ShapeSamples, n: int, near: float) -> np.ndarray:
    """Rows of n samples anywhere, that share of them near the surface."""
    if near:
        return _nearest_first(rng.permutation(len(shape.x)), shape.s, round(near * n))[:n]
    return rng.choice(len(shape.x), n, replace=n > len(shape.x))


def _nearest_first(index: np.ndarray, s: np.ndarray, n: int) -> np.ndarray:
    """The same rows in the same order, but for the first n of those near the surface, which come first."""
    if not n:
        return index
    first = np.flatnonzero(np.abs(s[index, 0]) <= NEAR)[:n]
    return np.concatenate((index[first], np.delete(index, first)))


# partial: what one depth camera sees, drawn as the level set is; the loader gives such a view as the shape's surface
RULES: dict[ContextRule, Callable[..., Draw]] = {"dense": dense, "levelset": levelset, "partial": levelset, "oriented": oriented}


def stack(tasks: list[int], draws: list[Draw]) -> TaskBatch:
    """Draws of B shapes as one batch of tensors."""
    columns = [torch.from_numpy(np.stack(column)) for column in zip(*draws, strict=True)]
    return TaskBatch(torch.tensor(tasks), Observations(columns[0], columns[1]), Observations(columns[2], columns[3]))
