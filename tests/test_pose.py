"""Poses: exact ways there and back, also far from the origin, framed as training frames meshes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from solids import box, cup

from metasdf.data.procedural import procedural_shape
from metasdf.data.shape import frame_of
from metasdf.errors import InputError, UsageError
from metasdf.geometry.frame import FILL, Frame
from metasdf.geometry.mesh import Mesh, bounds
from metasdf.geometry.pose import UPS, Pose, headings, pose_of, upright

EPS = float(np.finfo(np.float64).eps)
POINTS = np.random.default_rng(0).uniform(-1, 1, (200, 3)) * (1, 2, 0.5)


@settings(deadline=None)  # the machine may be busy
@given(st.tuples(*[st.floats(-1e7, 1e7)] * 3), st.floats(1e-3, 1e3), st.sampled_from(UPS), st.integers(1, 24), st.integers(0, 23))
def test_there_and_back(offset: tuple[float, float, float], size: float, up: str, n: int, k: int) -> None:
    """Field coordinates come back to rounding; so do the scan's own, whose rounding is that of the offset."""
    x = POINTS * size + offset
    pose = pose_of(x, headings(n)[k % n] @ upright(up))  # type: ignore[arg-type]
    field = pose.to_field(x)
    large = np.abs(x).max()
    assert np.abs(pose.from_field(field) - x).max() <= 8 * EPS * large
    assert np.abs(pose.to_field(pose.from_field(POINTS)) - POINTS).max() <= 8 * EPS * (large * pose.frame.scale + 2)
    assert np.abs(field.min(0) + field.max(0)).max() <= 16 * EPS * (large * pose.frame.scale + 1)  # the box of the turned points is centred
    assert np.linalg.norm(field, axis=1).max() == pytest.approx(FILL, abs=16 * EPS * (large * pose.frame.scale + 1))


@settings(deadline=None)
@given(st.tuples(*[st.floats(-1e7, 1e7)] * 3), st.integers(0, 23))
def test_distances_scale(offset: tuple[float, float, float], k: int) -> None:
    pose = pose_of(POINTS + offset, headings(24)[k])
    a, b = pose.to_field((POINTS + offset)[:2])
    assert np.linalg.norm(a - b) == pytest.approx(pose.frame.scale * np.linalg.norm(POINTS[0] - POINTS[1]), rel=1e-7)


@settings(deadline=None)
@given(st.tuples(*[st.integers(-(10**7), 10**7)] * 3), st.sampled_from(UPS))
def test_a_scan_far_away_is_the_same_scan(offset: tuple[int, int, int], up: str) -> None:
    grid = np.round(POINTS * 2**20) / 2**20  # adding whole numbers changes no digit of these
    near, far = (pose_of(x, upright(up)).to_field(x) for x in (grid, grid + offset))  # type: ignore[arg-type]
    assert np.abs(near - far).max() < 1e-8


def test_framed_as_for_training() -> None:
    for mesh in (procedural_shape("chairs", 3, seed=0), cup()):
        assert np.allclose(pose_of(mesh.vertices).frame.centre, frame_of(mesh).centre, rtol=0, atol=1e-15)
        assert pose_of(mesh.vertices).frame.scale == pytest.approx(frame_of(mesh).scale, rel=1e-15)


@pytest.mark.parametrize("up", UPS)
def test_up_becomes_y(up: str) -> None:
    """What lies along the given axis of the scan goes up in the field; nothing is mirrored."""
    axis = (-1.0 if up[0] == "-" else 1.0) * np.eye(3)["xyz".index(up[-1])]
    turn = upright(up)  # type: ignore[arg-type]
    assert (turn @ axis).tolist() == [0, 1, 0] and np.linalg.det(turn) == 1
    pose = Pose(turn, Frame((5.0, 6.0, 7.0), 0.5))
    assert pose.to_field(np.array([[5.0, 6.0, 7.0]]) + 2 * axis).tolist() == [[0, 1, 0]]


def test_the_front_of_a_scan_with_z_up_comes_to_z() -> None:
    """As `render` has it: a scan with z up is seen from -y."""
    assert (upright("z") @ [0, -1, 0]).tolist() == [0, 0, 1]


def test_a_chair_lying_down_gets_up() -> None:
    chair = procedural_shape("chairs", 1, seed=0)
    lying = chair.vertices @ upright("z")  # its y axis lies along z
    assert bounds(Mesh(lying, chair.faces))[:, 2].tolist() == bounds(chair)[:, 1].tolist()
    assert np.allclose(pose_of(lying, upright("z")).to_field(lying), pose_of(chair.vertices).to_field(chair.vertices), rtol=0, atol=1e-15)


def test_headings() -> None:
    for n in (1, 4, 24, 7):
        turns = headings(n)
        assert len(turns) == n and (turns[0] == np.eye(3)).all()
        for k, turn in enumerate(turns):
            assert np.allclose(turn @ turn.T, np.eye(3), atol=4 * EPS) and np.linalg.det(turn) == pytest.approx(1) and turn[1].tolist() == [0, 1, 0]
            assert np.allclose(np.linalg.matrix_power(turns[1 % n], k), turn, atol=1e-14)
    assert {abs(float(v)) for turn in headings(24)[::6] for v in turn.ravel()} == {0.0, 1.0}  # quarter turns are exact
    assert np.allclose(headings(24)[1] @ [0, 0, 1], [np.sin(np.pi / 12), 0, np.cos(np.pi / 12)])


def test_some_heading_undoes_a_turn() -> None:
    """A box turned by a multiple of 15 degrees is framed as it was, to rounding, under one of the 24 headings."""
    x = box(size=(3, 1, 2)).vertices
    turned = x @ headings(24)[5].T + (100.0, 0.0, -20.0)
    gaps = [np.abs(pose_of(turned, turn).to_field(turned) - pose_of(x).to_field(x)).max() for turn in headings(24)]
    assert int(np.argmin(gaps)) == 19 and min(gaps) < 1e-12


def test_what_is_refused() -> None:
    with pytest.raises(UsageError, match="no axis 'w'") as caught:
        upright("w")  # type: ignore[arg-type]
    assert (caught.value.where, caught.value.cause, caught.value.fix) == ("up", "a misspelt axis", "use one of y, z, x, -y, -z, -x")
    with pytest.raises(UsageError, match="At least one heading") as caught:
        headings(0)
    assert (caught.value.where, caught.value.cause, caught.value.fix) == ("headings(0)", "a number below 1", "use 4 or 24")
    with pytest.raises(InputError, match="0 in size"):
        pose_of(np.ones((5, 3)))
