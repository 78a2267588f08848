"""Measures against closed forms: shifted points, concentric and overlapping balls; what must not change them, and what they must not hide."""

from __future__ import annotations

import json
from math import pi
from typing import Any

import numpy as np
import pytest
from solids import ball, box
from solids import flipped as some_flipped

from metasdf.errors import InputError, UsageError
from metasdf.geometry.frame import Frame, identity
from metasdf.geometry.mesh import Mesh, areas, transform
from metasdf.geometry.sampling import DEEPSDF_SPREADS, surface_points
from metasdf.metrics import DEFINITION, PAPER, VALUES, Convention, Failure, Inside, Measures, best, closeness, compare, iou, misclassified, summarise

Floats = np.ndarray[Any, Any]
FEW = Convention(points=2000, volume_points=20_000)
UNIT = identity(3)


def turned(mesh: Mesh) -> Mesh:
    return some_flipped(mesh, 1)


def on_sphere(n: int, radius: float, *, seed: int) -> Floats:
    """Exactly uniform points of a sphere, with normals."""
    x = np.random.default_rng(seed).standard_normal((n, 3))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return np.concatenate((radius * x, x), 1)


def within(radius: float, centre: tuple[float, ...] = (0, 0, 0)) -> Inside:
    return lambda x: np.linalg.norm(x - np.array(centre), axis=1) < radius


def grid(shift: tuple[float, ...] = (0, 0, 0)) -> Floats:
    """Points one unit apart, with normals along z."""
    x = np.stack(np.meshgrid(*[np.arange(5.0)] * 3), -1).reshape(-1, 3)
    return np.concatenate((x + np.array(shift), np.broadcast_to((0.0, 0.0, 1.0), x.shape)), 1)


# -- points ----------------------------------------------------------------------------------------------------------------------------


def test_shifted_points() -> None:
    """Of points far apart the nearest of the other side is the point's own image: every distance is the shift."""
    shift = np.array((0.1, -0.2, 0.2))  # of length 0.3
    near, far = (closeness(grid(), grid(tuple(shift)), threshold=t) for t in (0.3001, 0.2999))
    assert near.chamfer_field == far.chamfer_field == pytest.approx(2 * 0.09, rel=1e-12)
    assert near[1:4] == (1, 1, 1) and far[1:4] == (0, 0, 0)
    assert near.normals == near.normals_signed == 1


def test_precision_is_ours_and_recall_the_truth() -> None:
    truth, half = grid(), grid()[:50]  # of 125
    found = closeness(truth, np.concatenate((half, half[:10] + 100)), threshold=0.5)
    assert (found.precision, found.recall) == (50 / 60, 50 / 125)
    assert found.fscore == pytest.approx(2 * (50 / 60) * 0.4 / (50 / 60 + 0.4))


def test_both_ways_count_alike() -> None:
    a, b = on_sphere(700, 1, seed=0), on_sphere(400, 0.8, seed=1)[:, [1, 2, 0, 3, 4, 5]]
    there, back = closeness(a, b, threshold=0.22), closeness(b, a, threshold=0.22)
    assert (there.precision, there.recall) == (back.recall, back.precision) and 0 < there.recall != there.precision
    assert np.allclose([there[k] for k in (0, 1, 4, 5)], [back[k] for k in (0, 1, 4, 5)], rtol=1e-12)


@pytest.mark.parametrize("radius", [1.0, 0.9, 0.5])
def test_concentric_spheres(radius: float) -> None:
    """The gap squared, twice, plus what sampling adds: n points on a sphere leave a mean squared angle of 4 / n to the nearest."""
    n = 4000
    found = closeness(on_sphere(n, 1, seed=2), on_sphere(n, radius, seed=3), threshold=1)
    assert found.chamfer_field == pytest.approx(2 * ((1 - radius) ** 2 + radius * 4 / n), rel=0.05)
    assert found.chamfer_field > 2 * (1 - radius) ** 2
    assert found.normals == found.normals_signed and found.normals == pytest.approx(1 - 2 / n, abs=2e-4)


def test_normals_by_a_known_angle() -> None:
    """A quarter of the points turned by 60 degrees, another one around: |cos| 1/2 and 1, cos 1/2 and -1."""
    truth, ours = grid(), grid()[:100]
    ours[:25, 3:], ours[25:50, 3:] = (0, np.sin(pi / 3), 0.5), (0, 0, -1)
    found = closeness(truth[:100], ours, threshold=1)
    assert found.normals == pytest.approx(0.25 * 0.5 + 0.75, rel=1e-12)
    assert found.normals_signed == pytest.approx(0.25 * 0.5 - 0.25 + 0.5, rel=1e-12)


def test_unknown_normals() -> None:
    truth = grid() * (1, 1, 1, 0, 0, 0)
    assert closeness(truth, grid(), threshold=1)[4:] == closeness(grid(), truth, threshold=1)[4:] == (None, None)


# -- insides ---------------------------------------------------------------------------------------------------------------------------


def lens(r: float, s: float, d: float) -> float:
    """Volume that two balls share whose centres are d apart: two caps."""
    return pi * (r + s - d) ** 2 * (d * d + 2 * d * (r + s) - 3 * (r - s) ** 2) / (12 * d)


@pytest.mark.parametrize(("r", "s", "d"), [(1.0, 1.0, 0.5), (1.0, 0.7, 0.9), (0.6, 0.5, 1.0)])
def test_iou_of_two_balls(r: float, s: float, d: float) -> None:
    x = np.random.default_rng(4).uniform(-2, 2, (200_000, 3))
    a, b = within(r)(x), within(s, (d, 0, 0))(x)
    shared = lens(r, s, d)
    truth = shared / (4 / 3 * pi * (r**3 + s**3) - shared)
    error = (truth * (1 - truth) / (a | b).sum()) ** 0.5
    assert abs(iou(a, b) - truth) < 3.5 * error < 0.05
    assert iou(a, b) == iou(b, a)


def test_iou_at_its_ends() -> None:
    x = np.random.default_rng(5).uniform(-2, 2, (2000, 3))
    a, far, nothing = within(1)(x), within(0.5, (1.5, 0, 0))(x), within(0)(x)
    assert iou(a, a) == 1 and iou(a, far) == 0 and iou(a, nothing) == 0 and iou(nothing, nothing) is None


def test_misclassified() -> None:
    a = np.arange(200) < 50
    assert misclassified(a, a) == 0 and misclassified(a, ~a) == 100 and misclassified(a, np.arange(200) < 47) == 1.5


# -- meshes ----------------------------------------------------------------------------------------------------------------------------


def test_a_surface_against_itself_is_the_floor() -> None:
    """The distance r from n points spread over an area A to the nearest exceeds t with probability exp(-pi n t^2 / A), so r^2 is A / (pi n)."""
    mesh = box(size=(1.5, 0.8, 0.6))
    found = compare(mesh, mesh, name="box", frame=UNIT, convention=PAPER._replace(points=8000))
    each = areas(mesh).sum() / (pi * 8000)
    assert found.chamfer_floor == pytest.approx(2 * each, rel=0.05)
    assert found.fscore_floor == pytest.approx(1 - np.exp(-(0.02**2) / each), abs=0.02)
    assert found.chamfer == pytest.approx(found.chamfer_floor, rel=0.05) and found.chamfer != found.chamfer_floor
    assert found.fscore == pytest.approx(found.fscore_floor, abs=0.02)
    assert found.normals > 0.9 and found.normals == pytest.approx(found.normals_floor, abs=0.01)
    assert found.iou is None and found.misclassified is None


def test_default_convention_is_the_papers() -> None:
    assert PAPER == (30_000, 0.02, 20_000, 0)
    assert compare(ball(1), ball(2), name="ball", frame=UNIT).convention == PAPER


def test_concentric_balls() -> None:
    truth, ours = ball(4), ball(4, radius=0.8)
    found = compare(truth, ours, name="ball", frame=UNIT, convention=FEW, inside_truth=within(1), inside_ours=within(0.8))
    assert found.chamfer == pytest.approx(2 * (0.04 + 0.8 * 4 / 2000), rel=0.05)
    error = (0.8**3 * (1 - 0.8**3) / (FEW.volume_points * pi / 6)) ** 0.5
    assert found.iou == pytest.approx(0.8**3, abs=3.5 * error) and found.fscore == 0 and found.normals > 0.99


@pytest.mark.parametrize("shift", [0.5, -0.5])
def test_iou_is_over_both_boxes(shift: float) -> None:
    """Of two cubes half a side apart: a third, whichever of them is a mesh, and also where one ends before the other."""
    mesh, inside = [box(centre=(c, 0, 0)) for c in (0, shift)], [lambda x, c=c: (np.abs(x - (c, 0, 0)) < 0.5).all(1) for c in (0, shift)]
    on = surface_points(mesh[0], 2000, rng=np.random.default_rng(8))
    for truth in (mesh[0], np.concatenate((on.points, on.normals), 1)):
        found = compare(truth, mesh[1], name="cube", frame=UNIT, convention=FEW, inside_truth=inside[0], inside_ours=inside[1])
        assert found.iou == pytest.approx(1 / 3, abs=3.5 * (2 / 9 / FEW.volume_points) ** 0.5)


def test_wrong_signs_near_the_surface() -> None:
    """Beside a plane, large in relation to the noise, half of the points are above it, and few above a plane one spread higher."""
    plane = Mesh(np.array([[-9, -9, 0], [9, -9, 0], [0, 9, 0.0]]) * 100, np.array([[0, 1, 2]]))
    above = [lambda x, h=h: x[:, 2] > h for h in (0, -np.inf, DEEPSDF_SPREADS[0])]
    results = [compare(plane, plane, name="plane", frame=UNIT, convention=FEW, inside_truth=above[0], inside_ours=ours) for ours in above]
    same, everywhere, higher = (result.misclassified for result in results)
    # Between 0 and h are, of the wide half, 34.13 %, and of the narrow one, which h is sqrt(10) spreads of, 49.92 %.
    assert same == 0 and everywhere == pytest.approx(50, abs=4) and higher == pytest.approx((34.13 + 49.92) / 2, abs=4)


def test_turned_faces() -> None:
    as_is, inside_out = (compare(ball(3), ours, name="ball", frame=UNIT, convention=FEW) for ours in (ball(3), turned(ball(3))))
    assert as_is.normals_signed == as_is.normals > 0.99 and inside_out.normals_signed == -inside_out.normals < -0.99


def test_units() -> None:
    """Large and far away, in a frame that knows it: field units are the same, own units grow with the size."""
    size, centre = 50.0, np.array((1000, -2000, 3000.0))
    moved = lambda mesh: Mesh(mesh.vertices * size + centre, mesh.faces)  # noqa: E731
    insides = within(0.9), within(0.8)
    there = [lambda x, inside=inside: inside((x - centre) / size) for inside in insides]
    truth, ours = ball(3, radius=0.9), ball(2, radius=0.8)
    a = compare(truth, ours, name="ball", frame=UNIT, convention=FEW, inside_truth=insides[0], inside_ours=insides[1])
    b = compare(moved(truth), moved(ours), name="ball", frame=Frame(tuple(centre), 1 / size), convention=FEW, inside_truth=there[0],
                inside_ours=there[1])  # fmt: skip
    own = {"chamfer", "chamfer_floor"}
    for value in VALUES:
        assert getattr(b, value) == pytest.approx(getattr(a, value) * (size**2 if value in own else 1), rel=1e-9), value
    assert a.chamfer == a.chamfer_field and b.chamfer == pytest.approx(b.chamfer_field * size**2, rel=1e-12)


def test_the_frame_does_not_change_own_units() -> None:
    truth, ours = ball(3), ball(2, radius=0.8)
    a, b = (compare(truth, ours, name="ball", frame=Frame((s, 0, 0), s), convention=FEW) for s in (1.0, 0.3))
    assert b.chamfer == pytest.approx(a.chamfer, rel=1e-9) and b.chamfer_field == pytest.approx(0.09 * a.chamfer_field, rel=1e-9)


def test_rigid_motion() -> None:
    turn, up = np.linalg.qr(np.random.default_rng(6).standard_normal((3, 3)))[0], np.eye(4)
    up[:3, :3], up[:3, 3] = turn * np.linalg.det(turn), (0.3, -0.2, 0.1)
    truth, ours = box(size=(1, 0.5, 0.3)), box(size=(0.9, 0.5, 0.3), cuts=3)
    a, b = (compare(transform(truth, m), transform(ours, m), name="box", frame=UNIT, convention=FEW) for m in (np.eye(4), up))
    assert all(getattr(b, value) == pytest.approx(getattr(a, value), rel=1e-9) for value in VALUES if getattr(a, value) is not None)


def test_points_as_truth() -> None:
    """As data sets hold them, in single precision. Enough of them give a floor; too few do not, and never enough is an error."""
    mesh = ball(3)
    on = surface_points(mesh, 5000, rng=np.random.default_rng(7))
    rows = np.concatenate((on.points, on.normals), 1, dtype=np.float32)
    meshes = compare(mesh, box(), name="ball", frame=UNIT, convention=FEW)
    many = compare(rows, box(), name="ball", frame=UNIT, convention=FEW)
    few = compare(rows[:2000] * (1, 1, 1, 0, 0, 0), box(), name="ball", frame=UNIT, convention=FEW)
    assert many.chamfer == pytest.approx(meshes.chamfer, rel=0.03) and many.chamfer_floor == pytest.approx(meshes.chamfer_floor, rel=0.1)
    assert many.normals == pytest.approx(meshes.normals, abs=0.02)
    assert few.chamfer == pytest.approx(meshes.chamfer, rel=0.03)
    assert few.chamfer_floor is few.chamfer_field_floor is few.fscore_floor is few.normals is few.normals_floor is None
    drawn_without_repetition = compare(rows[:4000], rows[:4000], name="ball", frame=UNIT, convention=FEW)
    assert drawn_without_repetition.chamfer_floor > 0.9 * 2 * 4 / 2000
    for bad in (rows[:1999], rows[:, :3], rows * np.nan):
        with pytest.raises(InputError, match="points with normals"):
            compare(bad, mesh, name="ball", frame=UNIT, convention=FEW)


def test_seed_and_name_decide() -> None:
    def measured(name: str = "a", seed: int = 0) -> Measures:
        return compare(ball(2), box(), name=name, frame=UNIT, convention=FEW._replace(seed=seed), inside_truth=within(1), inside_ours=within(0.5))

    first, chamfers = measured(), {measured().chamfer, measured("b").chamfer, measured(seed=1).chamfer}
    assert first == measured() and len(chamfers) == 3


def test_reconstructions_are_judged_by_the_same_points() -> None:
    """Of one shape: two that have the same inside are wrong at the same points, whatever their meshes."""
    both = {"inside_truth": within(1), "inside_ours": within(0.9)}
    a, b = (compare(ball(3), ours, name="a", frame=UNIT, convention=FEW, **both) for ours in (ball(1), box()))
    assert a.misclassified == b.misclassified > 0 and a.chamfer_floor == b.chamfer_floor


@pytest.mark.parametrize(
    "bad",
    [
        Mesh(np.zeros((0, 3)), np.zeros((0, 3), np.int64)),
        Mesh(np.zeros((3, 3)), np.array([[0, 1, 2]])),
        Mesh(np.full((3, 3), np.nan), np.array([[0, 1, 2]])),
        np.zeros((0, 6)),
    ],
)
def test_no_surface(bad: Mesh) -> None:
    with pytest.raises(InputError) as told:
        compare(ball(1), bad, name="mug", frame=UNIT, convention=FEW)
    assert told.value.where == "mug, reconstruction"
    with pytest.raises(InputError) as told:
        compare(bad, ball(1), name="mug", frame=UNIT, convention=FEW)
    assert told.value.where == "mug, truth"


def test_bad_usage() -> None:
    def measured(inside: object, convention: Convention = FEW) -> Measures:
        return compare(ball(1), ball(1), name="a", frame=UNIT, convention=convention, inside_truth=within(1), inside_ours=inside)  # type: ignore[arg-type]

    with pytest.raises(UsageError, match="both insides or none"):
        measured(None)
    with pytest.raises(UsageError, match="at least one point"):
        measured(within(1), FEW._replace(points=0))
    for inside in (lambda x: np.linalg.norm(x, axis=1) - 1, lambda x: within(1)(x)[:, None]):
        with pytest.raises(UsageError, match="yes or no"):
            measured(inside)


# -- over shapes -----------------------------------------------------------------------------------------------------------------------


def measures(name: str, chamfer: float, *, convention: Convention = PAPER, inside: float | None = None) -> Measures:
    return Measures(name, chamfer, None, 4 * chamfer, None, 1.0, None, 1.0, 1.0, None, None, None, inside, None, convention)


def test_summary() -> None:
    told = summarise([measures("a", 1, inside=0.5), Failure("b", "it has no zero level"), measures("c", 2), measures("d", 6)])
    assert (told["n"], told["failed"], told["best_of"]) == (3, 1, 1)
    assert told["failures"] == [{"name": "b", "reason": "it has no zero level"}] and told["convention"] == PAPER._asdict()
    assert told["metrics"]["chamfer"] == {"mean": 3, "median": 2, "std": pytest.approx((14 / 3) ** 0.5), "n": 3}
    assert told["metrics"]["iou"] == {"mean": 0.5, "median": 0.5, "std": 0, "n": 1} and told["metrics"]["normals"] is None
    assert json.loads(json.dumps(told, allow_nan=False)) == told


def test_a_summary_of_real_comparisons_is_json() -> None:
    told = summarise([compare(ball(1), box(), name="a", frame=UNIT, convention=FEW, inside_truth=within(1), inside_ours=within(0.5))])
    assert json.loads(json.dumps(told, allow_nan=False)) == told and all(told["metrics"].values())


def test_all_failed() -> None:
    told = summarise([Failure("a", "empty"), Failure("b", "empty")])
    assert (told["n"], told["failed"]) == (0, 2) and set(told["metrics"].values()) == {None}


def test_every_value_has_its_definition() -> None:
    assert set(VALUES) <= set(DEFINITION) and set(VALUES) == set(Measures._fields) - {"name", "convention", "best_of"}


def test_best_of_two() -> None:
    """It says so; a failed reconstruction loses; where all fail, the shape has failed."""
    a = best(measures("a", 2), measures("a", 1))
    b = best(Failure("b", "empty"), measures("b", 5))
    c = best(Failure("c", "empty"), Failure("c", "diverged"))
    assert a == measures("a", 1)._replace(best_of=2) and b == measures("b", 5)._replace(best_of=2) and c == Failure("c", "empty", 2)
    told = summarise([a, b, c])
    assert (told["best_of"], told["n"], told["failed"]) == (2, 2, 1) and told["metrics"]["chamfer"]["mean"] == 3
    assert best(a, measures("a", 3)).best_of == 3
    with pytest.raises(UsageError, match="one shape"):
        best(measures("a", 1), measures("b", 1))


def test_what_cannot_be_one_mean() -> None:
    a, b = measures("a", 1), measures("b", 1)
    for mixed in ([], [best(a, a), b], [a, Failure("b", "empty", 2)], [a, measures("b", 1, convention=FEW)]):
        with pytest.raises(UsageError, match="measured alike"):
            summarise(mixed)
    with pytest.raises(UsageError, match="more than once"):
        summarise([a, b, measures("a", 2)])
