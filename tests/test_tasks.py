"""Context rules: what is drawn from a shape, that it is of the shape, and that the generator alone decides."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from metasdf.tasks import NEAR, RULES, Draw, ShapeSamples, dense, draw_surface, levelset, stack

both_dimensions = pytest.mark.parametrize("d", [2, 3])
every_rule = pytest.mark.parametrize("rule", [dense, levelset])


def shape(d: int = 2, *, samples: int = 60, surface: int = 40, dtype: type = np.float32) -> ShapeSamples:
    """All points differ and none is the origin, so that a point names its index; the SDF value of sample i is i + 1."""
    x = np.arange(samples * d, dtype=dtype).reshape(samples, d) + 1
    s = np.arange(samples, dtype=dtype)[:, None] + 1
    return ShapeSamples(x, s, -(np.arange(surface * d, dtype=dtype).reshape(surface, d) + 1))


def rows(points: np.ndarray) -> list[tuple[float, ...]]:
    return [tuple(row) for row in points.tolist()]


def assert_samples_of(shape: ShapeSamples, x: np.ndarray, s: np.ndarray) -> None:
    """Every drawn point is a sample of the shape and carries its own distance."""
    distance = dict(zip(rows(shape.x), shape.s[:, 0].tolist(), strict=True))
    assert [distance[row] for row in rows(x)] == s[:, 0].tolist()


@both_dimensions
@pytest.mark.parametrize(("n_context", "n_query"), [(20, 30), (20, 40), (1, 1), (60, 0)])
def test_dense_context_and_query_are_disjoint_samples(d: int, n_context: int, n_query: int) -> None:
    whole = shape(d)
    draw = dense(np.random.default_rng(0), whole, n_context=n_context, n_query=n_query)
    assert draw.context_x.shape == (n_context, d) and draw.context_y.shape == (n_context, 1)
    assert draw.query_x.shape == (n_query, d) and draw.query_y.shape == (n_query, 1)
    drawn = rows(draw.context_x) + rows(draw.query_x)
    assert len(set(drawn)) == n_context + n_query  # no repetition inside either, no overlap
    assert_samples_of(whole, draw.context_x, draw.context_y)
    assert_samples_of(whole, draw.query_x, draw.query_y)


def test_dense_draws_every_sample_equally_often() -> None:
    """In 400 draws a sample is in a context of 20 of 60 some 133 times, standard deviation 9.4."""
    whole, rng, counts = shape(), np.random.default_rng(0), np.zeros(60)
    for _ in range(400):
        counts[(dense(rng, whole, n_context=20, n_query=5).context_y[:, 0] - 1).astype(int)] += 1
    assert abs(counts - 400 / 3).max() < 5 * 9.4


def test_dense_refuses_to_overlap() -> None:
    with pytest.raises(ValueError, match=r"30 context \+ 31 query points asked of a shape with 60 samples"):
        dense(np.random.default_rng(0), shape(), n_context=30, n_query=31)


@both_dimensions
@pytest.mark.parametrize(("surface", "n_context"), [(40, 12), (40, 40), (5, 12), (1, 12)])
def test_levelset_context_is_the_surface_at_distance_zero(d: int, surface: int, n_context: int) -> None:
    whole = shape(d, surface=surface)
    draw = levelset(np.random.default_rng(0), whole, n_context=n_context, n_query=30)
    assert draw.context_x.shape == (n_context, d) and draw.context_y.shape == (n_context, 1)
    assert not draw.context_y.any()
    assert set(rows(draw.context_x)) <= set(rows(whole.surface))  # never padding, never the origin
    if n_context <= surface:
        assert len(set(rows(draw.context_x))) == n_context  # without replacement
    assert len(set(rows(draw.query_x))) == 30
    assert_samples_of(whole, draw.query_x, draw.query_y)


def test_levelset_query_repeats_samples_only_where_there_are_too_few() -> None:
    draw = levelset(np.random.default_rng(0), shape(samples=10), n_context=3, n_query=50)
    assert draw.query_x.shape == (50, 2)
    assert_samples_of(shape(samples=10), draw.query_x, draw.query_y)


def test_surface_points_are_drawn_equally_often() -> None:
    """With replacement too: 20 of 7 points, 300 times, 857 draws each with standard deviation 27."""
    points, rng, counts = shape(surface=7).surface, np.random.default_rng(0), dict.fromkeys(rows(shape(surface=7).surface), 0)
    for _ in range(300):
        for row in rows(draw_surface(rng, points, 20)):
            counts[row] += 1
    assert max(abs(count - 6000 / 7) for count in counts.values()) < 5 * 27


def test_an_empty_surface_is_an_error() -> None:
    with pytest.raises(ValueError, match="no surface points"):
        levelset(np.random.default_rng(0), shape(surface=0), n_context=3, n_query=3)


@every_rule
def test_the_generator_decides_everything(rule: Callable[..., Draw]) -> None:
    def draws(seed: int) -> Draw:
        return rule(np.random.default_rng(seed), shape(), n_context=12, n_query=12)

    np.random.seed(5)  # noqa: NPY002 - the global generator must not matter
    one = draws(1)
    assert all(np.array_equal(a, b) for a, b in zip(one, draws(1), strict=True))
    assert not np.array_equal(one.context_x, draws(2).context_x)
    assert not np.array_equal(one.query_x, draws(2).query_x)


@every_rule
def test_drawing_leaves_the_shape_alone(rule: Callable[..., Draw]) -> None:
    whole = shape()
    draw = rule(np.random.default_rng(0), whole, n_context=12, n_query=12)
    for column in draw:
        column[:] = -7.0
    assert all(np.array_equal(a, b) for a, b in zip(whole, shape(), strict=True))


def test_rules_are_found_by_name() -> None:
    assert RULES["dense"] is dense and RULES["levelset"] is levelset


@both_dimensions
@every_rule
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_stack_makes_one_batch(d: int, rule: Callable[..., Draw], dtype: type) -> None:
    rng = np.random.default_rng(0)
    draws = [rule(rng, shape(d, dtype=dtype), n_context=12, n_query=7) for _ in range(3)]
    batch = stack([4, 0, 9], draws)
    assert batch.task.tolist() == [4, 0, 9] and batch.task.dtype == torch.int64
    assert batch.context.x.shape == (3, 12, d) and batch.context.y.shape == (3, 12, 1)
    assert batch.query.x.shape == (3, 7, d) and batch.query.y.shape == (3, 7, 1)
    for i, draw in enumerate(draws):  # each task keeps its own numbers, and their precision
        stacked = (batch.context.x[i], batch.context.y[i], batch.query.x[i], batch.query.y[i])
        assert all(np.array_equal(t.numpy(), a) and t.numpy().dtype == dtype for t, a in zip(stacked, draw, strict=True))


def test_stack_refuses_tasks_of_different_size() -> None:
    draws = [dense(np.random.default_rng(0), shape(), n_context=n, n_query=5) for n in (4, 5)]
    with pytest.raises(ValueError, match="shape"):
        stack([0, 1], draws)


def test_a_batch_moves_as_a_whole() -> None:
    """To the device without data, which every machine has."""
    draws = [dense(np.random.default_rng(i), shape(), n_context=4, n_query=5) for i in range(2)]
    batch = stack([0, 1], draws)
    moved = batch.to(torch.device("meta"))
    for ours, theirs in zip((moved.task, *moved.context, *moved.query), (batch.task, *batch.context, *batch.query), strict=True):
        assert ours.device.type == "meta" and theirs.device.type == "cpu"
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)


@pytest.mark.parametrize("rule", [dense, levelset])
def test_a_share_of_the_query_lies_near_the_surface(rule: Callable[..., Draw]) -> None:
    x = np.linspace(-1, 1, 401)[:, None]
    shape = ShapeSamples(x, x.copy(), np.zeros((9, 1)))  # 1D: s = x, some 25 samples are near
    draw = rule(np.random.default_rng(0), shape, n_context=8, n_query=40, near=0.5)
    assert len(np.unique(draw.query_x)) == 40
    near = int((np.abs(draw.query_y) <= NEAR).sum())
    assert near >= 20 and near < 26
    everything = rule(np.random.default_rng(0), shape, n_context=8, n_query=40, near=1.0)
    assert int((np.abs(everything.query_y) <= NEAR).sum()) >= 20  # all there are, less those of the context; the rest from anywhere
    assert rule is not dense or not set(draw.context_x[:, 0]) & set(draw.query_x[:, 0])
