"""Tasks from stores of 3D shapes: parts of their files, views, judged samples, categories."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from spheres import CENTRE, distance, write_spheres
from test_train import tiny, trainer

from metasdf.data.loader import Loader, MeshShapes, rows_of
from metasdf.data.shape import encode, read_shape
from metasdf.data.store import Store
from metasdf.errors import InputError, UsageError
from metasdf.evaluate import evaluate, grid_errors
from metasdf.experiments import Experiment, experiment
from metasdf.heads import Distance
from metasdf.prior import build_conditioner, load, load_sdf
from metasdf.surfaces import evaluate_surfaces
from metasdf.tasks import OFFSET


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write_spheres(tmp_path_factory.mktemp("solids") / "spheres")


def loader(store: Store, rule: str, **points: int) -> Loader:
    return Loader(store, indices=store.split("train"), rule=rule, batch=3, seed=0, **{"n_context": 60, "n_query": 80, **points})  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", ["dense", "levelset", "partial", "oriented"])
def test_a_task_is_of_its_shape(store: Store, rule: str) -> None:
    batch = loader(store, rule).batch(0)
    for k, task in enumerate(batch.task.tolist()):
        (cx, cy), (qx, qy) = ((o.x[k].numpy(), o.y[k, :, 0].numpy()) for o in (batch.context, batch.query))
        assert cx.shape == (60, 3) and qx.shape == (80, 3)
        np.testing.assert_allclose(cy, distance(task, cx), atol=1e-6)
        np.testing.assert_allclose(qy, distance(task, qx), atol=1e-6)
        if rule == "dense":
            assert not {tuple(x) for x in cx.tolist()} & {tuple(x) for x in qx.tolist()}
        elif rule == "oriented":
            assert -OFFSET <= cy.min() < -OFFSET / 2 and OFFSET / 2 < cy.max() <= OFFSET
        else:
            assert not cy.any()
        if rule == "partial":
            assert (cx[:, 0] >= CENTRE[0]).all()  # what the camera sees, and nothing else


@pytest.mark.parametrize("rule", ["dense", "levelset", "partial", "oriented"])
def test_mirrored_tasks_are_of_mirrored_shapes(store: Store, rule: str) -> None:
    """Both ways come along each of the axes, in the context as in the query, and along no other."""
    drawn = Loader(store, indices=store.split("train"), rule=rule, n_context=60, n_query=80, batch=3, seed=0, mirror=(0, 1))  # type: ignore[arg-type]
    found = set()
    for step in range(12):
        batch = drawn.batch(step)
        for k, task in enumerate(batch.task.tolist()):
            fits = []
            for sign in ((1, 1, 1), (-1, 1, 1), (1, -1, 1), (-1, -1, 1)):
                close = [np.abs(o.y[k, :, 0].numpy() - distance(task, o.x[k].numpy() * sign)).max() < 1e-5 for o in (batch.context, batch.query)]
                fits += [sign] if all(close) else []
            assert len(fits) == 1
            found.add(fits[0])
    assert len(found) == 4


@pytest.mark.parametrize("rule", ["dense", "levelset", "partial", "oriented"])
def test_a_batch_depends_on_seed_and_step_only(store: Store, rule: str) -> None:
    forward = [loader(store, rule).batch(step) for step in range(3)]
    for step in (2, 0, 1):
        again = loader(store, rule).batch(step)
        assert torch.equal(forward[step].context.x, again.context.x) and torch.equal(forward[step].query.y, again.query.y)
    assert not torch.equal(forward[0].context.x, forward[2].context.x)


def test_judged_samples_are_never_drawn(store: Store) -> None:
    judged = MeshShapes(store).judged(0)
    assert judged.x.shape == (60, 3) and judged.s.shape == (60, 1)  # a fifth of 300
    np.testing.assert_allclose(judged.s[:, 0], distance(0, judged.x), atol=1e-6)
    ours = Loader(store, indices=np.array([0]), rule="dense", n_context=100, n_query=140, batch=1, seed=0)
    seen = {tuple(x) for step in range(30) for o in (ours.batch(step).context, ours.batch(step).query) for x in o.x[0].tolist()}
    assert len(seen) == 240 and not seen & {tuple(x) for x in judged.x.tolist()}  # all the others are


def test_more_than_there_is(store: Store) -> None:
    with pytest.raises(UsageError, match="disjoint sets need fewer points"):
        loader(store, "dense", n_context=200).batch(0)
    batch = loader(store, "levelset", n_context=500).batch(0)  # each point twice, some once more
    assert {int(n) for n in torch.unique(batch.context.x[0], dim=0, return_counts=True)[1]} == {2, 3}


def test_no_rows_at_the_end_of_a_file(store: Store) -> None:
    """A dense task reads no surface points; wherever that part begins, also right after the last one."""

    class Last(np.random.Generator):
        def integers(self, high: int, **how: object) -> int:  # type: ignore[override]
            return high - 1

    found = MeshShapes(store).part(0, Last(np.random.PCG64(0)), samples=10, points=0, view=False)
    assert found.x.shape == (10, 3) and found.surface.shape == (0, 3)


def test_shapes_without_views(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no depth views"):
        loader(write_spheres(tmp_path / "blind", views=0), "partial").batch(0)


def test_shapes_without_normals(tmp_path: Path) -> None:
    bare = write_spheres(tmp_path / "bare")
    shape = read_shape(bare.item(0))
    shape.arrays["surface"][:, 3:] = 0
    bare.item(0).write_bytes(encode(shape))
    with pytest.raises(UsageError, match=r"no oriented context can be drawn: its surface points have no normals(.|\n)*prepare the meshes themselves"):
        loader(bare, "oriented").tasks(np.array([0]))


def test_a_damaged_shape(tmp_path: Path) -> None:
    damaged = write_spheres(tmp_path / "damaged")
    file = damaged.item(0)
    data = bytearray(file.read_bytes())
    data[8:16] = b"\xff" * 8  # in its header, which the store's own sizes do not show
    file.write_bytes(bytes(data))
    for ask in (lambda: loader(damaged, "dense").tasks(np.array([0])), lambda: MeshShapes(damaged).judged(0)):
        with pytest.raises(InputError, match="The shape cannot be read") as caught:
            ask()
        assert file.name in str(caught.value)


def test_shapes_with_different_numbers_of_samples_are_judged_together(tmp_path: Path) -> None:
    few, many = (write_spheres(tmp_path / name, samples=samples).item(0) for name, samples in (("few", 200), ("many", 300)))
    both = write_spheres(tmp_path / "both", shapes=2)
    for row, file in enumerate((few, many)):
        both.item(row).write_bytes(file.read_bytes())
    assert [len(MeshShapes(both).judged(row).s) for row in (0, 1)] == [40, 60]
    model = build_conditioner(solid("levelset"))
    errors = grid_errors(model, Distance(), both, indices=np.array([0, 1]), rule="levelset", n_context=20, seed=0, device=torch.device("cpu"))
    assert errors.n == 2 and np.isfinite(errors.mse[-1])


def test_a_prior_of_another_dimension_is_refused(store: Store) -> None:
    with pytest.raises(UsageError, match="mnist-dense is for 2D shapes, the data set holds 3D ones"):
        evaluate(load("mnist-dense"), store, progress=False)
    with pytest.raises(UsageError, match="mnist-dense is for 2D shapes"):
        evaluate_surfaces(load("mnist-dense"), store, progress=False)


def test_rows_of_a_category(store: Store) -> None:
    assert rows_of(store, "test", "balls").tolist() == [1, 2, 3, 4]
    assert rows_of(store, "test", "marbles").tolist() == [5] and rows_of(store, "test", None).tolist() == [1, 2, 3, 4, 5]
    with pytest.raises(UsageError, match="the split val holds no marbles") as caught:
        rows_of(store, "val", "marbles")
    assert "it has: balls" in str(caught.value)


def solid(rule: str) -> Experiment:
    """A small 3D experiment over balls; three Fourier frequencies, since after eight steps of training seven are noise that takes more Adam."""
    e = experiment(f"tables-{rule}")
    narrow = 7 if e.field.skip else 0  # 4 numbers of code and 3 coordinates
    method = replace(e.method, code_dim=4, codes=replace(e.method.codes, steps=5, points=20), pointnet=replace(e.method.pointnet, width=8))
    return replace(e, category="balls", n_context=40, n_query=40, n_test=40,
                   field=replace(e.field, width=16, hidden_layers=1, narrow=narrow, frequencies=3),
                   inner=replace(e.inner, steps=2), method=method,
                   train=replace(tiny().train, batch=2, products="float32", optimiser="adam", dropout=0.2 if narrow else 0.0))  # fmt: skip


@pytest.mark.parametrize("rule", ["dense", "levelset", "partial", "oriented", "deepsdf", "pointnet"])
def test_train_save_evaluate_adapt(store: Store, tmp_path: Path, rule: str) -> None:
    """The whole way in small: what the outer loss learns is saved with the run and resumed, and no prior carries it."""
    ours = trainer(tmp_path / "run", store, solid(rule), steps=4)
    ours.fit()
    assert ours.loader.indices.tolist() == [0, 1, 2, 3, 4]
    again = trainer(tmp_path / "run", store, solid(rule), steps=8)
    again.fit()
    assert again.step == 8
    prior = load(tmp_path / "run")
    result = evaluate(prior, store, runs=1, progress=False)
    assert result["n"] == 4 and result["failed"] == 0 and 0 < result["metrics"]["mae"] < 2
    assert evaluate(prior, store, category="marbles", progress=False)["n"] == 1
    if rule == "dense":
        assert prior.head.channels == 2
        outer = dict(ours._parameters())["outer.log_scale"]
        assert outer.abs().max() > 0 and not any("outer" in name for name in prior.state_dict())
    g = np.random.default_rng(0)
    x = g.uniform(-5, 5, (100, 3)) + 1e4  # another place and unit
    values = (np.linalg.norm(x - 1e4, axis=1) - 3.0,) if prior.needs_values else ()
    sdf = prior.adapt(x, *values, normals=x - 1e4 if prior.needs_normals else None)
    if rule in ("levelset", "partial", "pointnet"):
        for call in (evaluate, evaluate_surfaces):
            with pytest.raises(UsageError, match="bare points are not enough to refine"):
                call(prior, store, refine=1, progress=False)
    else:
        refined = evaluate(prior, store, refine=50, progress=False)
        assert refined["refine"] == 50 and refined["after_step"] is None
        assert rule == "oriented" or refined["metrics"]["mae"] < result["metrics"]["mae"]  # points near the surface say little of what is far from it
    s, gradient = sdf.value_and_grad(x[:7])
    assert s.shape == (7,) and gradient.shape == (7, 3) and np.isfinite(s).all()
    sdf.save(tmp_path / "sdf.safetensors")
    np.testing.assert_allclose(load_sdf(tmp_path / "sdf.safetensors")(x[:7]), s, rtol=1e-5)
