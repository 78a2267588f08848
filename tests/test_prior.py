"""Priors: adapt to observations in any units, answer as arrays or tensors, save, load, and refuse what cannot be used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metasdf.checkpoint import load_state, save_state
from metasdf.conditioning.base import Conditioner
from metasdf.conditioning.inner_loop import InnerLoopConfig
from metasdf.errors import CheckpointError, InputError, UsageError
from metasdf.experiments import Experiment
from metasdf.fields import FieldSpec, Layer, Params, field, initialise
from metasdf.geometry.frame import Frame, identity
from metasdf.geometry.mesh import face_normals
from metasdf.geometry.pose import Pose
from metasdf.heads import Distance, DistanceAndSign, Head
from metasdf.prior import MAX_CONTEXT, SDF, Prior, build_conditioner, load, load_sdf
from metasdf.tasks import OFFSET, Observations


def small_prior(rule: Any = "levelset", **inner: Any) -> Prior:
    """Untrained, but with rates small enough that its steps go downhill."""
    config = InnerLoopConfig(**{"init_rate": 0.02, "steps": 3, **inner})
    experiment = Experiment(name=f"test-{rule}", preset="test", context=rule, n_context=64, n_query=64, n_test=64,
                            field=FieldSpec(width=16, hidden_layers=1), inner=config)  # fmt: skip
    return Prior(experiment, build_conditioner(experiment, generator=torch.Generator().manual_seed(1)), card={"made": "for a test"})


def circle(n: int = 200) -> np.ndarray:
    angles = np.arange(n) / n * 2 * np.pi
    return np.column_stack((np.cos(angles), np.sin(angles)))


def samples(n: int = 300) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).uniform(-1.3, 1.3, (n, 2))
    return x, np.linalg.norm(x, axis=1) - 1


QUERY = np.random.default_rng(1).uniform(-1.3, 1.3, (40, 2))


def test_points_with_normals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a sphere anywhere, normals of any length: what is fitted to are true distances, near the surface in field units."""
    experiment = replace(small_prior().experiment, context="oriented", field=FieldSpec(in_dim=3, width=16, hidden_layers=1))
    prior = Prior(experiment, build_conditioner(experiment, generator=torch.Generator().manual_seed(1)))
    monkeypatch.setattr("metasdf.prior.MAX_CONTEXT", 250)
    normals = np.random.default_rng(0).standard_normal((300, 3))
    points = (5.0, 0.0, -3.0) + 2.0 * normals / np.linalg.norm(normals, axis=1, keepdims=True)
    (pose, x, s), seen = prior._observe(points, None, normals, None), prior.adapt(points, normals=normals)
    assert s is not None and len(x) == 250 and -OFFSET <= s.min() < -OFFSET / 2 and OFFSET / 2 < s.max() <= OFFSET
    np.testing.assert_allclose(np.linalg.norm(pose.from_field(x) - (5.0, 0.0, -3.0), axis=1) - 2.0, s / seen.frame.scale, atol=1e-9)
    both = prior.adapt([points, points * 2], normals=[normals, normals])
    np.testing.assert_allclose(both[1](points * 2), 2 * seen(points), atol=1e-4)
    flat = normals.copy()
    flat[7] = 0
    for wrong, says in ((None, "none were given"), (normals[1:], r"shape \(300, 3\)"), (flat, "1 of 300 normals are zero")):
        with pytest.raises(InputError, match=says):
            prior.adapt(points, normals=wrong)
    with pytest.raises(InputError, match="does not learn from normals"):
        small_prior().adapt(circle(), normals=circle())
    with pytest.raises(InputError, match="1 of normals"):
        prior.adapt([points, points], normals=[normals])


# -- units -----------------------------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["dense", "levelset"]), st.tuples(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4)), st.floats(1e-2, 1e2))
def test_units_do_not_matter(rule: str, shift: tuple[float, float], scale: float) -> None:
    """Observations moved and scaled give the field moved and scaled: sdf'(scale x + shift) = scale sdf(x)."""
    prior = small_prior(rule)
    x, s = samples() if rule == "dense" else (circle(), None)
    here = prior.adapt(x, s)(QUERY)
    there = prior.adapt(x * scale + shift, None if s is None else s * scale)(QUERY * scale + shift)
    assert np.allclose(there / scale, here, atol=1e-3 if np.abs(shift).max() > 1e3 * scale else 1e-5)


def test_the_frame_shows_the_shape_as_in_training() -> None:
    frame = small_prior().adapt(circle() * 5 + (100, 200)).frame
    assert frame.centre == pytest.approx((100, 200)) and frame.scale == pytest.approx(20 / 28 / 10)


def test_a_given_frame_is_kept() -> None:
    frame = Frame((0.1, -0.2), 0.3)
    prior = small_prior("dense")
    assert prior.adapt(*samples(), frame=frame).frame == frame


def test_a_frame_of_another_dimension() -> None:
    with pytest.raises(InputError, match="3D frame"):
        small_prior().adapt(circle(), frame=Frame((0.0, 0.0, 0.0), 1.0))


# -- the inner loop, reached through the prior -----------------------------------------------------------------------------------------


def test_the_field_is_that_of_the_conditioner() -> None:
    prior = small_prior("dense")
    x, s = samples()
    frame = Frame((0.0, 0.0), 0.25)
    context = Observations(torch.tensor(x * 0.25).float()[None], torch.tensor(s * 0.25).float()[None, :, None])
    params = prior.conditioner(context)
    expected = field(params, torch.tensor(QUERY * 0.25).float()[None], prior.conditioner.spec)[0, :, 0] / 0.25
    assert np.allclose(prior.adapt(x, s, frame=frame)(QUERY), expected.detach().numpy(), atol=1e-5)


def test_steps_go_downhill_and_can_be_looked_at() -> None:
    prior = small_prior("dense", steps=5)
    x, s = samples()
    sdf = prior.adapt(x, s)
    errors = [float(np.mean((sdf.after(j)(x) - s) ** 2)) for j in range(6)]
    assert errors[-1] < errors[0] and len(sdf.path) == 6
    assert np.allclose(sdf.after(0)(QUERY), sdf.after(0)(QUERY)) and (sdf.after(5)(QUERY) == sdf(QUERY)).all()


def test_more_steps_than_trained() -> None:
    x, s = samples()
    assert len(small_prior("dense").adapt(x, s, steps=7).path) == 8
    with pytest.raises(ValueError, match="extra_steps"):
        small_prior("dense", extra_steps="error").adapt(x, s, steps=7)


def test_a_method_without_steps() -> None:
    class Constant(Conditioner):
        def forward(self, context: Observations) -> Params:
            return ()

    context = Observations(torch.zeros(1, 3, 2), torch.zeros(1, 3, 1))
    assert Constant().trajectory(context) == [()] and Constant().inner_steps is None
    with pytest.raises(UsageError, match="no inner steps"):
        Constant().trajectory(context, steps=3)


def test_a_list_is_fitted_as_one_by_one() -> None:
    """Shapes of different size, in another order than their batches."""
    prior = small_prior()
    clouds = [circle(100), circle(50) * (1, 2), circle(100) * (0.5, 1) + 3, circle(50)]
    together = prior.adapt(clouds)
    assert len(together) == 4
    for cloud, sdf in zip(clouds, together, strict=True):
        assert np.allclose(sdf(QUERY), prior.adapt(cloud)(QUERY), atol=1e-5)


def test_a_list_with_values_and_frames() -> None:
    prior = small_prior("dense")
    x, s = samples()
    frame = Frame((0.0, 0.0), 0.25)
    sdfs = prior.adapt([x, x * 2], [s, s * 2], frame=[frame, Frame((0.0, 0.0), 0.125)])
    assert np.allclose(sdfs[0](QUERY) * 2, sdfs[1](QUERY * 2), atol=1e-5)
    with pytest.raises(InputError, match="2 shapes, 1 sets of values"):
        prior.adapt([x, x], [s])


def test_a_list_of_coordinate_pairs_is_one_shape() -> None:
    points = circle(20)
    assert np.allclose(small_prior().adapt(points.tolist())(QUERY), small_prior().adapt(points)(QUERY))


def test_too_many_points_are_drawn_from() -> None:
    cloud = circle(MAX_CONTEXT + 1000)
    assert np.allclose(small_prior().adapt(cloud)(QUERY), small_prior().adapt(circle(5000))(QUERY), atol=1e-3)


# -- answers ---------------------------------------------------------------------------------------------------------------------------


def test_answers_in_kind() -> None:
    sdf = small_prior().adapt(circle())
    numbers = sdf(QUERY.reshape(4, 10, 2))
    assert isinstance(numbers, np.ndarray) and numbers.shape == (4, 10) and numbers.dtype == np.float64
    tensor = sdf(torch.tensor(QUERY))
    assert isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64 and np.allclose(tensor.numpy(), numbers.ravel())
    assert sdf([0.0, 1.0]).shape == () and sdf(np.zeros((0, 2))).shape == (0,)
    whole = sdf(torch.tensor([[1, 0], [0, 1]]))
    assert whole.dtype == torch.float32 and np.allclose(whole.numpy(), sdf(np.array([[1, 0], [0, 1]])), atol=1e-6)


def test_gradients_are_in_the_users_units() -> None:
    prior = small_prior("dense")
    x, s = samples()
    sdf = prior.adapt(x * 50 + 1000, s * 50)
    where = QUERY * 50 + 1000
    values, gradients = sdf.value_and_grad(where)
    assert np.allclose(values, sdf(where)) and gradients.shape == where.shape
    h = 0.05
    numeric = np.stack([(sdf(where + h * e) - sdf(where - h * e)) / (2 * h) for e in np.eye(2)], -1)
    assert np.median(np.abs(numeric - gradients)) < 5e-3  # the kinks of the ReLU are where single points differ


def test_bad_queries() -> None:
    sdf = small_prior().adapt(circle())
    for x in (np.zeros((5, 3)), np.float64(1.0)):
        with pytest.raises(InputError, match="must have shape"):
            sdf(x)


# -- refusals --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("points", "says"),
    [
        (np.zeros((2, 50)), "transposed"),
        (np.zeros((50, 3)), "3D points for a prior of 2D shapes"),
        (np.zeros(50), "(50,)"),
        (np.zeros((0, 2)), "0 points"),
        (circle(2), "2 points cannot show a shape"),
        (np.ones((50, 2)), "coincide"),
        (np.where(np.arange(100).reshape(50, 2) == 7, np.nan, circle(50)), "1 of 50 points"),
        (np.full((50, 2), np.inf), "50 of 50 points"),
        (np.full((50, 2), "a"), "not numbers"),
    ],
)
def test_bad_points(points: np.ndarray, says: str) -> None:
    with pytest.raises(InputError) as caught:
        small_prior().adapt(points)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("values", "says"),
    [(np.zeros(7), "one for each point"), (np.full(300, np.nan), "300 of 300 distances"), (np.ones(300), "outside (positive)"),
     (-np.ones((300, 1)), "inside (negative)")],
)  # fmt: skip
def test_bad_values(values: np.ndarray, says: str) -> None:
    with pytest.raises(InputError) as caught:
        small_prior("dense").adapt(samples()[0], values)
    assert says in str(caught.value)


def test_the_wrong_kind_of_observations() -> None:
    with pytest.raises(InputError, match="mnist-levelset"):
        small_prior("dense").adapt(circle())
    with pytest.raises(InputError, match="mnist-dense"):
        small_prior("levelset").adapt(*samples())


# -- files -----------------------------------------------------------------------------------------------------------------------------


def test_save_and_load(tmp_path: Path) -> None:
    prior = small_prior()
    for target, source in ((tmp_path / "a.safetensors", tmp_path / "a.safetensors"), (tmp_path / "run" / "prior.safetensors", tmp_path / "run")):
        prior.save(target)
        again = load(source)
        assert again.experiment == prior.experiment and again.card == prior.card and again.extent == prior.extent and not again.training
        assert (again.adapt(circle())(QUERY) == prior.adapt(circle())(QUERY)).all()


def test_a_compact_file_rounds_what_scales_gradients_and_nothing_else(tmp_path: Path) -> None:
    prior = small_prior()
    prior.save(tmp_path / "whole.safetensors")
    prior.save(tmp_path / "compact.safetensors", compact=True)
    again = load(tmp_path / "compact.safetensors")
    for (name, p), q in zip(prior.conditioner.named_parameters(), again.conditioner.parameters(), strict=True):
        assert q.dtype == torch.float32 and torch.equal(q, p.half().float() if name.startswith("rates.") else p)
    assert (tmp_path / "compact.safetensors").stat().st_size < (tmp_path / "whole.safetensors").stat().st_size
    again.save(tmp_path / "twice.safetensors", compact=True)  # rounding once is rounding for good
    once, twice = (load_state(tmp_path / f"{name}.safetensors", kind="prior")[0] for name in ("compact", "twice"))
    assert once.keys() == twice.keys() and all(torch.equal(t, twice[name]) for name, t in once.items())


def test_save_and_load_of_a_field(tmp_path: Path) -> None:
    sdf = small_prior("dense").adapt(*samples())
    sdf.save(tmp_path / "shape.safetensors")
    again = load_sdf(tmp_path / "shape.safetensors")
    assert again.frame == sdf.frame and again.prior == sdf.prior and (again(QUERY) == sdf(QUERY)).all()


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no prior 'mnist-dens'"):
        load("mnist-dens")
    with pytest.raises(UsageError, match="no trained prior"):
        load(tmp_path)


def test_a_damaged_prior(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    small_prior().save(path)
    whole = path.read_bytes()
    for content in (whole[:-10], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        path.write_bytes(content)
        with pytest.raises(CheckpointError):
            load(path)


def test_a_prior_of_another_version(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    small_prior().save(path)
    tensors, state = load_state(path, kind="prior")
    changed = [
        ({**state, "experiment": {**state["experiment"], "novelty": 1}}, tensors),
        ({k: v for k, v in state.items() if k != "extent"}, tensors),
        (state, dict(list(tensors.items())[:-1])),
    ]
    for new_state, new_tensors in changed:
        save_state(path, new_tensors, new_state, kind="prior")
        with pytest.raises(CheckpointError, match="does not fit this version"):
            load(path)


# -- meshes ----------------------------------------------------------------------------------------------------------------------------


def sphere_sdf(head: Head, pose: Frame | Pose) -> SDF:
    """About a sphere of radius 1/2 in the field's cube; a second output, if the head has one, has the same sign."""
    spec = FieldSpec(in_dim=3, out_dim=head.channels, width=64, hidden_layers=1, init="geometric")
    params = initialise(replace(spec, out_dim=1), generator=torch.Generator().manual_seed(0))
    last = Layer(params[-1].weight.repeat(head.channels, 1), params[-1].bias.repeat(head.channels))
    return SDF([(*params[:-1], last)], spec, head, pose)


@pytest.mark.parametrize("head", [Distance(), DistanceAndSign()])
def test_a_mesh_is_in_the_units_of_its_shape(head: Head) -> None:
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    frame = Frame((100.0, -20.0, 7.0), 0.1)
    here, there = (sphere_sdf(head, pose) for pose in (identity(3), Pose(turn * np.linalg.det(turn), frame)))
    found, plain = there.extract(resolution=64), here.extract(resolution=64)
    assert np.abs(there(found.mesh.vertices)).max() < 0.05 and np.abs(here(plain.mesh.vertices)).max() < 0.005
    assert np.allclose(there.pose.to_field(found.mesh.vertices), plain.mesh.vertices, atol=1e-9)
    assert np.array_equal(found.mesh.faces, plain.mesh.faces)
    assert found.watertight and found.evaluations < 64**3 / 3
    outwards = found.mesh.vertices[found.mesh.faces].mean(1) + 0.3 * face_normals(found.mesh)
    assert (there(outwards) > 0).mean() > 0.99
    assert np.array_equal(there.mesh(64).vertices, found.mesh.vertices)


def test_little_memory_means_few_points_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sdf, sizes = sphere_sdf(Distance(), identity(3)), []
    plenty = sdf.mesh(48)
    inner = sdf.in_field
    monkeypatch.setattr(sdf, "in_field", lambda x: (sizes.append(len(x)), inner(x))[1])
    monkeypatch.setattr("metasdf.prior.available_bytes", lambda device: 4_000_000)
    scarce = sdf.mesh(48)
    assert 100 < max(sizes) < 1000 and len(scarce.faces) == len(plenty.faces)
    assert np.allclose(scarce.vertices, plenty.vertices, atol=1e-5)


def test_2d_shapes_have_no_mesh() -> None:
    with pytest.raises(UsageError, match="only 3D"):
        small_prior().adapt(circle()).mesh()
