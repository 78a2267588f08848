"""Frames: the map between the user's units and the field's square, and its inverse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metasdf.errors import InputError
from metasdf.geometry.frame import Frame, bounding_box, identity

offsets = st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
scales = st.floats(1e-3, 1e3)


@settings(deadline=None)  # the machine may be busy
@given(offsets, scales)
def test_there_and_back(centre: tuple[float, float], scale: float) -> None:
    x = np.random.default_rng(0).uniform(-1, 1, (50, 2))
    frame = Frame(centre, scale)
    rounding = 4 * np.finfo(np.float64).eps * (scale * np.abs(centre).max() + 1)
    assert np.abs(frame.to_field(frame.from_field(x)) - x).max() <= rounding


@settings(deadline=None)  # the machine may be busy
@given(offsets, scales)
def test_distances_scale(centre: tuple[float, float], scale: float) -> None:
    a, b = np.add(centre, [[0.5, 1.0], [-0.25, 2.0]])
    frame = Frame(centre, scale)
    assert np.linalg.norm(frame.to_field(a) - frame.to_field(b)) == pytest.approx(scale * np.linalg.norm(a - b), rel=1e-6)


def test_identity_changes_nothing() -> None:
    x = np.random.default_rng(0).normal(size=(5, 3))
    assert (identity(3).to_field(x) == x).all() and (identity(3).from_field(x) == x).all()


def test_single_precision_keeps_its_digits() -> None:
    """float32 input is taken to float64 before the centre is taken away."""
    x = np.array([[1e6 + 0.5, 0.0]], np.float32)
    assert Frame((1e6, 0.0), 1.0).to_field(x).tolist() == [[0.5, 0.0]]


@settings(deadline=None)  # the machine may be busy
@given(offsets, scales)
def test_the_box_moves_with_its_points(shift: tuple[float, float], scale: float) -> None:
    points = np.random.default_rng(0).uniform(-1, 1, (30, 2)) * (3, 1)
    frame, moved = bounding_box(points, extent=0.7), bounding_box(points * scale + shift, extent=0.7)
    rounding = 1e-14 * (np.abs(shift).max() / scale + 10)
    assert moved.scale * scale == pytest.approx(frame.scale, rel=1e-9 + rounding)
    assert np.allclose((np.array(moved.centre) - shift) / scale, frame.centre, rtol=0, atol=1e-9 + 10 * rounding)


def test_the_longest_side_takes_the_extent() -> None:
    frame = bounding_box(np.array([[2.0, 5.0], [6.0, 6.0], [4.0, 5.5]]), extent=0.5)
    assert frame == Frame((4.0, 5.5), 0.125)


def test_points_without_a_size() -> None:
    with pytest.raises(InputError, match="coincide"):
        bounding_box(np.ones((5, 2)), extent=0.5)
