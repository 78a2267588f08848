"""Batches are pure functions of seed and step; an epoch is a permutation; each rule draws what it promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from metasdf.data.loader import ImageShapes, Loader
from metasdf.data.store import Store, StoreWriter
from metasdf.errors import UsageError
from metasdf.geometry.image import pixel_grid
from metasdf.tasks import TaskBatch

SIDE, SHAPES, BATCH = 12, 11, 3
CENTRE, RADIUS = np.random.default_rng(0).uniform(-0.1, 0.1, (SHAPES, 2)), np.linspace(0.15, 0.35, SHAPES)


def write(path: Path, *, kind: str = "image-sdf-2d", points: int = 20) -> Store:
    """Circles whose distances and contours are known exactly; shape k has `points` + k contour points."""
    grid = pixel_grid(SIDE)
    sdf = np.stack([np.linalg.norm(grid - c, axis=1) - r for c, r in zip(CENTRE, RADIUS, strict=True)]).reshape(SHAPES, SIDE, SIDE)
    counts = np.arange(SHAPES) + points if points else np.zeros(SHAPES, np.int64)
    angles = [np.linspace(0, 6, n) for n in counts]
    contours = [c + r * np.stack((np.cos(a), np.sin(a)), 1) for c, r, a in zip(CENTRE, RADIUS, angles, strict=True)]
    with StoreWriter(path, kind=kind, request={}, meta={}) as writer:
        writer.add("sdf", sdf.astype(np.float32))
        writer.add("contour_points", np.concatenate(contours).astype(np.float32))
        writer.add("contour_offsets", np.concatenate([[0], np.cumsum(counts)]))
        writer.splits = {"train": np.arange(SHAPES)[::-1].copy(), "empty": np.arange(0)}
    return Store.open(path)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write(tmp_path_factory.mktemp("loader") / "circles")


def loader(store: Store, rule: str = "dense", *, split: str = "train", seed: int = 0, batch: int = BATCH, **points: int) -> Loader:
    points = {"n_context": 30, "n_query": 40, **points}
    return Loader(store, indices=store.split(split), rule=rule, batch=batch, seed=seed, **points)  # type: ignore[arg-type]


def same(a: TaskBatch, b: TaskBatch) -> bool:
    return all(torch.equal(x, y) for x, y in zip((a.task, *a.context, *a.query), (b.task, *b.context, *b.query), strict=True))


def distance(task: int, x: torch.Tensor) -> np.ndarray:
    return np.linalg.norm(x.numpy() - CENTRE[task], axis=1) - RADIUS[task]


both_rules = pytest.mark.parametrize("rule", ["dense", "levelset"])


@both_rules
def test_a_batch_depends_on_seed_and_step_only(store: Store, rule: str) -> None:
    forward, backward = loader(store, rule), loader(store, rule)
    batches = [forward.batch(step) for step in range(8)]
    for step in reversed(range(8)):
        assert same(backward.batch(step), batches[step])
        assert same(forward.batch(step), batches[step])
    assert not any(same(a, b) for i, a in enumerate(batches) for b in batches[:i])
    assert not same(loader(store, rule, seed=1).batch(0), batches[0])


@both_rules
def test_the_points_of_a_task_do_not_depend_on_its_company(store: Store, rule: str) -> None:
    ours = loader(store, rule)
    together = ours.tasks(np.array([4, 9, 2]), epoch=3)
    alone = ours.tasks(np.array([9]), epoch=3)
    assert torch.equal(together.context.x[1:2], alone.context.x) and torch.equal(together.query.y[1:2], alone.query.y)
    assert not torch.equal(ours.tasks(np.array([9]), epoch=2).context.x, alone.context.x)


def test_an_epoch_visits_every_shape_once(store: Store) -> None:
    ours = loader(store, batch=1)
    assert ours.steps_per_epoch == SHAPES
    epochs = [[int(ours.batch(epoch * SHAPES + k).task) for k in range(SHAPES)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(SHAPES)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_remainder_of_an_epoch_is_left_out(store: Store) -> None:
    ours = loader(store)
    assert ours.steps_per_epoch == SHAPES // BATCH
    tasks = [int(t) for step in range(ours.steps_per_epoch) for t in ours.batch(step).task]
    assert len(tasks) == len(set(tasks)) == BATCH * (SHAPES // BATCH)


def test_a_batch_is_at_most_the_split(store: Store) -> None:
    ours = loader(store, batch=100)
    assert (ours.batch_size, ours.steps_per_epoch) == (SHAPES, 1)
    assert sorted(ours.batch(5).task.tolist()) == list(range(SHAPES))


def test_only_the_given_shapes_are_drawn(store: Store) -> None:
    ours = Loader(store, indices=np.array([3, 7]), rule="dense", n_context=4, n_query=4, batch=2, seed=0)
    assert {int(t) for step in range(5) for t in ours.batch(step).task} == {3, 7}


def test_dense_context_and_query_are_disjoint_samples(store: Store) -> None:
    batch = loader(store, n_context=SIDE * SIDE // 2, n_query=SIDE * SIDE // 2).batch(1)
    assert batch.context.x.shape == batch.query.x.shape == (BATCH, SIDE * SIDE // 2, 2)
    grid = {tuple(x) for x in pixel_grid(SIDE).tolist()}
    for k, task in enumerate(batch.task.tolist()):
        context, query = ({tuple(x) for x in o.x[k].tolist()} for o in (batch.context, batch.query))
        assert not context & query and context | query == grid
        for o in (batch.context, batch.query):
            assert np.allclose(o.y[k, :, 0], distance(task, o.x[k]), atol=1e-6)


@pytest.mark.parametrize("n_context", [15, 200])  # a subset, and with replacement
def test_a_levelset_context_lies_on_the_contour(store: Store, n_context: int) -> None:
    ours = loader(store, "levelset", n_context=n_context)
    batch = ours.batch(0)
    assert batch.context.y.shape == (BATCH, n_context, 1) and not batch.context.y.any()
    for k, task in enumerate(batch.task.tolist()):
        assert np.abs(distance(task, batch.context.x[k])).max() < 1e-6
        own = {tuple(x) for x in ours.shapes[task].surface.tolist()}
        drawn = [tuple(x) for x in batch.context.x[k].tolist()]
        assert set(drawn) <= own
        assert len(set(drawn)) == n_context if n_context < 20 else len(set(drawn)) > 15
        assert np.allclose(batch.query.y[k, :, 0], distance(task, batch.query.x[k]), atol=1e-6)


def test_each_shape_owns_its_contour(store: Store) -> None:
    shapes = ImageShapes(store)
    assert [len(shapes[k].surface) for k in range(SHAPES)] == [20 + k for k in range(SHAPES)]


def test_more_points_than_samples_are_refused(store: Store) -> None:
    with pytest.raises(UsageError, match="200 query points asked of a shape with 144 samples") as caught:
        loader(store, n_query=200).batch(0)
    assert "--resolution" in caught.value.fix and str(store.path) in caught.value.where


def test_a_data_set_without_contours_is_refused_for_level_sets(tmp_path: Path) -> None:
    bare = write(tmp_path / "bare", points=0)
    assert loader(bare, "dense").batch(0).context.x.shape == (BATCH, 30, 2)
    with pytest.raises(UsageError, match="no surface points"):
        loader(bare, "levelset").batch(0)


def test_an_empty_split_is_refused(store: Store) -> None:
    with pytest.raises(UsageError, match="holds no shapes"):
        loader(store, split="empty")


def test_another_kind_of_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="this data set holds sdf-3d"):
        loader(write(tmp_path / "other", kind="sdf-3d"))
