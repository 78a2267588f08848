"""Errors of fields whose errors are known; counts of failures; the same numbers whatever the batches."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metasdf.checkpoint import write_json
from metasdf.conditioning.base import Conditioner
from metasdf.conditioning.metasdf import MetaSDF
from metasdf.data.loader import Loader
from metasdf.data.store import Store, StoreWriter
from metasdf.errors import UsageError
from metasdf.evaluate import GridErrors, evaluate, grid_errors, spread
from metasdf.experiments import Experiment, experiment
from metasdf.fields import FieldSpec, Layer, Params
from metasdf.geometry.image import pixel_grid
from metasdf.heads import Distance
from metasdf.prior import Prior, build_conditioner
from metasdf.tasks import Observations

CPU = torch.device("cpu")
SIDE, SHAPES, CONTEXT = 12, 7, 30
ROWS = np.arange(SHAPES)
TINY = replace(experiment("mnist-dense", preset="paper"), n_context=CONTEXT, n_query=CONTEXT, n_test=CONTEXT,
               field=FieldSpec(width=8, hidden_layers=1), inner=replace(experiment("mnist-dense").inner, steps=2))  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Circles of growing radius; shape 0 is by far the smallest."""
    rng, grid = np.random.default_rng(0), pixel_grid(SIDE)
    centre, radius = rng.uniform(-0.1, 0.1, (SHAPES, 1, 2)), np.linspace(0.1, 0.35, SHAPES)[:, None]
    angle = rng.uniform(0, 2 * np.pi, (SHAPES, 50))
    with StoreWriter(tmp_path_factory.mktemp("evaluate") / "circles", kind="image-sdf-2d", request={}, meta={"source": "circles"}) as writer:
        writer.add("sdf", (np.linalg.norm(grid - centre, axis=-1) - radius).reshape(SHAPES, SIDE, SIDE).astype(np.float32))
        writer.add("contour_points", (centre + radius[..., None] * np.stack((np.cos(angle), np.sin(angle)), -1)).reshape(-1, 2).astype(np.float32))
        writer.add("contour_offsets", np.arange(SHAPES + 1) * 50)
        writer.splits = {"test": ROWS, "val": np.array([2, 5]), "empty": np.arange(0)}
        path = writer.path
    return Store.open(path)


class Constant(Conditioner):
    """The field c everywhere, or NaN for tasks whose mean context distance exceeds `limit`."""

    spec = FieldSpec(width=3, hidden_layers=0)

    def __init__(self, c: float, *, limit: float = np.inf) -> None:
        super().__init__()
        self.c, self.limit = torch.nn.Parameter(torch.tensor(c)), limit

    def forward(self, context: Observations) -> Params:
        tasks = len(context.x)
        c = torch.where(context.y.mean((1, 2)) > self.limit, torch.nan, self.c)
        zeros = [(torch.zeros(tasks, *shape), torch.zeros(tasks, shape[0])) for shape in self.spec.shapes]
        return (*(Layer(w, b) for w, b in zeros[:-1]), Layer(zeros[-1][0], c.unsqueeze(1)))


def errors(model: Conditioner, store: Store, **options: Any) -> GridErrors:
    options = {"rule": "dense", "n_context": CONTEXT, "seed": 0, "device": CPU, "indices": ROWS, **options}
    return grid_errors(model, Distance(), store, **options)


def close(a: GridErrors, b: GridErrors, *, rtol: float) -> bool:
    return (a.n, a.failed) == (b.n, b.failed) and all(np.allclose(x, y, rtol=rtol, atol=0) for x, y in zip(a, b, strict=True))


def metasdf(seed: int = 0) -> MetaSDF:
    model = build_conditioner(TINY, generator=torch.Generator().manual_seed(seed))
    assert isinstance(model, MetaSDF)
    return model


def smallest_fails(store: Store, c: float = 0.1, *, seed: int = 0) -> Constant:
    """The smallest circle has the largest mean distance."""
    contexts = Loader(store, indices=ROWS, rule="dense", n_context=CONTEXT, n_query=0, batch=SHAPES, seed=seed).tasks(ROWS).context
    means = contexts.y.mean((1, 2)).sort().values
    assert int(contexts.y.mean((1, 2)).argmax()) == 0
    return Constant(c, limit=float(means[-2:].mean()))


@pytest.mark.parametrize("c", [0.0, 0.2, -0.1])
@pytest.mark.parametrize("rule", ["dense", "levelset"])
def test_a_constant_field_has_known_errors(store: Store, c: float, rule: str) -> None:
    found = errors(Constant(c), store, rule=rule)
    truth = store.arrays["sdf"].reshape(SHAPES, -1).astype(float)
    e = np.float32(c) - truth
    assert found.mse == pytest.approx([(e**2).mean()], rel=1e-5)
    assert found.mae == pytest.approx([np.abs(e).mean()], rel=1e-5)
    assert found.misclassified == pytest.approx([100 * ((truth < 0) != (c < 0)).mean()])
    assert found.shapes == pytest.approx((e**2).mean(1), rel=1e-5)
    assert (found.n, found.failed) == (SHAPES, 0)


def test_a_field_that_is_the_truth_has_none(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    sdf = torch.from_numpy(np.array(store.arrays["sdf"])).reshape(SHAPES, -1, 1)
    monkeypatch.setattr("metasdf.evaluate.field", lambda params, x, spec: sdf)
    found = errors(Constant(0.0), store)
    assert (found.mse, found.mae, found.misclassified) == ([0.0], [0.0], [0.0])


def test_a_shape_that_fails_is_counted_and_left_out(store: Store) -> None:
    found = errors(smallest_fails(store), store)
    others = errors(Constant(0.1), store, indices=ROWS[1:])
    assert (found.n, found.failed) == (SHAPES - 1, 1)
    assert [*found.mse, *found.mae, *found.misclassified] == pytest.approx([*others.mse, *others.mae, *others.misclassified])
    assert np.isnan(found.shapes[0]) and np.isfinite(found.shapes[1:]).all()


def test_all_shapes_fail(store: Store, recwarn: pytest.WarningsRecorder) -> None:
    found = errors(Constant(float("nan")), store)
    assert (found.n, found.failed) == (0, SHAPES)
    assert np.isnan([*found.mse, *found.mae, *found.misclassified]).all()
    assert not recwarn.list


@pytest.mark.parametrize("rule", ["dense", "levelset"])
def test_batches_change_nothing(store: Store, rule: str) -> None:
    model = metasdf()
    whole = errors(model, store, rule=rule)
    assert len(whole.mse) == 3 and whole.mse[0] != whole.mse[1]
    for batch in (1, 3, SHAPES):
        assert close(errors(model, store, rule=rule, batch=batch), whole, rtol=1e-4)


def test_the_seed_draws_the_context(store: Store) -> None:
    model = metasdf()
    assert close(errors(model, store, seed=3), errors(model, store, seed=3), rtol=0)
    a, b = errors(model, store, seed=3), errors(model, store, seed=4)
    assert a.mse[0] == b.mse[0]  # before the first step no context is used
    assert a.mse[-1] != b.mse[-1]


def test_progress_is_reported(store: Store) -> None:
    seen: list[tuple[int, int]] = []
    errors(Constant(0.0), store, batch=3, report=lambda done, total: seen.append((done, total)))
    assert seen == [(3, 7), (6, 7), (7, 7)]


def test_evaluation_leaves_the_model_alone(store: Store) -> None:
    model = metasdf()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    errors(model, store)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


# -- the result ----------------------------------------------------------------------------------------------------------------------------


def prior(model: Conditioner | None = None, e: Experiment = TINY) -> Prior:
    return Prior(e, model or metasdf(), card={"training": {"steps": 5}})


def run(p: Prior, store: Store, **options: Any) -> dict[str, Any]:
    return evaluate(p, store, **{"progress": False, **options})


def test_the_result_holds_what_it_promises(store: Store, tmp_path: Path) -> None:
    result = run(prior(), store)
    assert result["n"] == SHAPES and result["failed"] == 0 and result["runs"] == 1
    assert result["metrics"].keys() == {"mse", "mae", "misclassified", "mse_median"}
    assert result["fit_ms"].keys() == {"alone", "batched", "batch"} and 0 < result["fit_ms"]["alone"] < 60_000
    assert result["fit_ms"]["batch"] == SHAPES
    assert result["data"] == {"source": "circles", "fingerprint": store.fingerprint}
    assert result["context"] == {"rule": "dense", "points": CONTEXT}
    assert result["prior"] == "mnist-dense" and result["split"] == "test" and result["training"] == {"steps": 5}
    assert result["commit"] and result["hardware"] and result["definition"].keys() >= {"mse", "mae", "misclassified", "fit_ms"}
    by_step = result["after_step"]
    assert by_step.pop("n") == SHAPES and all(len(steps) == 3 for steps in by_step.values())
    assert {name: steps[-1] for name, steps in by_step.items()} == {k: result["metrics"][k] for k in ("mse", "mae", "misclassified")}
    result["after_step"]["n"] = SHAPES
    write_json(tmp_path / "a.json", result)
    assert json.loads((tmp_path / "a.json").read_text()) == result


def test_it_is_what_grid_errors_measures(store: Store) -> None:
    model = metasdf()
    result, found = run(prior(model), store, seed=2), errors(model, store, seed=2)
    assert result["metrics"] == {"mse": found.mse[-1], "mae": found.mae[-1], "misclassified": found.misclassified[-1],
                                 "mse_median": float(np.median(found.shapes))}  # fmt: skip


def test_three_runs_have_a_mean_and_a_deviation(store: Store) -> None:
    model = metasdf()
    result = run(prior(model), store, runs=3, seed=5)
    each = [errors(model, store, seed=seed) for seed in (5, 6, 7)]
    for name in ("mse", "mae", "misclassified"):
        values = [getattr(found, name)[-1] for found in each]
        assert result["metrics"][name] == pytest.approx(np.mean(values))
        assert result["metrics"][f"{name}_std"] == pytest.approx(np.std(values, ddof=1))
    assert result["metrics"]["mse_std"] > 0
    assert result["after_step"]["mse"] == each[0].mse
    assert result["metrics"]["mse_median"] == pytest.approx(np.median([found.shapes for found in each]))


def test_the_same_seed_is_the_same_result(store: Store) -> None:
    a, b = run(prior(), store, runs=2), run(prior(), store, runs=2)
    assert a["metrics"] == b["metrics"] and a["after_step"] == b["after_step"]


def test_failures_reach_the_result(store: Store) -> None:
    result = run(prior(smallest_fails(store)), store)
    assert (result["n"], result["failed"]) == (SHAPES - 1, 1)
    assert np.isfinite(list(result["metrics"].values())).all()


def test_a_prior_that_always_fails_is_still_a_result(store: Store, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    result = run(prior(Constant(float("nan"))), store)
    assert (result["n"], result["failed"]) == (0, SHAPES) and not recwarn.list
    write_json(tmp_path / "a.json", result)
    assert json.loads((tmp_path / "a.json").read_text())["metrics"] == dict.fromkeys(("mse", "mae", "misclassified", "mse_median"))


def test_part_of_a_split_and_other_splits(store: Store) -> None:
    assert run(prior(), store, limit=2)["n"] == 2
    val = run(prior(Constant(0.1)), store, split="val")
    assert val["n"] == 2 and val["metrics"]["mse"] == pytest.approx(errors(Constant(0.1), store, indices=np.array([2, 5])).mse[-1])


def test_more_and_fewer_steps(store: Store) -> None:
    p = prior()
    two, four, one = (run(p, store, steps=steps)["after_step"]["mse"] for steps in (None, 4, 1))
    assert (len(two), len(four), len(one)) == (3, 5, 2)
    assert four[:3] == two and two[:2] == one


def test_steps_are_told_of_the_first_shapes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metasdf.evaluate.STEPWISE", 3)
    model = metasdf()
    result, few, all_of_them = run(prior(model), store), errors(model, store, indices=ROWS[:3]), errors(model, store)
    assert result["after_step"] == {"mse": few.mse, "mae": few.mae, "misclassified": few.misclassified, "n": 3}
    assert result["metrics"]["mse"] == all_of_them.mse[-1] != few.mse[-1] and result["n"] == SHAPES


def test_progress_counts_the_steps_and_all_runs(store: Store) -> None:
    seen: list[tuple[int, int]] = []
    evaluate(prior(metasdf()), store, runs=2, batch=4, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4, 21), (7, 21), (11, 21), (14, 21), (18, 21), (21, 21)]


def test_a_method_without_steps_tells_none(store: Store) -> None:
    seen: list[tuple[int, int]] = []
    result = evaluate(prior(Constant(0.1)), store, runs=2, batch=4, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4, 14), (7, 14), (11, 14), (14, 14)] and result["after_step"] is None


@pytest.mark.parametrize(("limit", "expected"), [(None, [1, 2, 3, 5, 8]), (9, [1, 2, 3, 5, 8]), (2, [1, 3]), (3, [1, 2, 5]), (1, [1])])
def test_a_limit_is_spread_over_the_split(limit: int | None, expected: list[int]) -> None:
    assert spread(np.array([1, 2, 3, 5, 8]), limit).tolist() == expected


def test_bad_requests(store: Store) -> None:
    with pytest.raises(UsageError, match="no split 'tset'"):
        run(prior(), store, split="tset")
    with pytest.raises(UsageError, match="holds no shapes"):
        run(prior(), store, split="empty")
    with pytest.raises(UsageError, match="asked of a shape with 144 samples"):
        run(prior(e=replace(TINY, n_test=1024)), store)
    with pytest.raises(UsageError, match="Constant has no inner steps"):
        run(prior(Constant(0.1)), store, steps=3)
