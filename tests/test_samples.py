"""Zero crossings of scattered SDF samples, against shapes known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metasdf.errors import InputError
from metasdf.geometry.samples import zero_crossings


def circle(n: int, *, dim: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Samples of the unit circle or sphere."""
    x = np.random.default_rng(seed).uniform(-1.5, 1.5, (n, dim))
    return x, np.linalg.norm(x, axis=1) - 1


@pytest.mark.parametrize(("dim", "n"), [(2, 500), (2, 2000), (3, 3000)])
def test_on_the_surface(dim: int, n: int) -> None:
    x, s = circle(n, dim=dim)
    found = zero_crossings(x, s)
    spacing = 3 / n ** (1 / dim)
    assert found.shape[1] == dim and len(found) > n ** ((dim - 1) / dim)
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() < 2 * spacing**2  # linear interpolation: second order


def test_exact_on_a_line() -> None:
    x = np.random.default_rng(0).uniform(-1, 1, (200, 2))
    found = zero_crossings(x, x @ (0.6, 0.8) - 0.1)
    assert np.abs(found @ (0.6, 0.8) - 0.1).max() < 1e-12


@settings(max_examples=25, deadline=None)
@given(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), st.floats(1e-3, 1e3))
def test_moves_with_the_samples(shift: tuple[float, float], scale: float) -> None:
    """Far from the origin too: the triangulation sees the shape of the samples only."""
    x, s = circle(200)
    there = x * scale + shift
    a, b = zero_crossings(x, s), zero_crossings(there, s * scale)
    back = (b - shift) / scale
    assert np.abs(np.linalg.norm(back, axis=1) - 1).max() < 0.05
    if np.abs(shift).max() < 1e3 * scale:
        assert len(a) == len(b) and np.allclose(np.sort(a, 0), np.sort(back, 0), atol=1e-9)


def test_samples_on_the_surface_are_kept() -> None:
    x, s = circle(300)
    angles = np.linspace(0, 6, 20)
    on = np.column_stack((np.cos(angles), np.sin(angles)))
    found = {tuple(p) for p in zero_crossings(np.concatenate((x, on)), np.concatenate((s, np.zeros(20))))}
    assert {tuple(p) for p in on} <= found


def test_surface_samples_alone() -> None:
    x, s = circle(300)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    assert np.array_equal(zero_crossings(x, 0 * s), x)


def test_duplicates() -> None:
    x, s = circle(300)
    once, thrice = zero_crossings(x, s), zero_crossings(np.tile(x, (3, 1)), np.tile(s, 3))
    assert np.allclose(np.unique(once.round(9), axis=0), np.unique(thrice.round(9), axis=0))


@pytest.mark.parametrize(("shift", "says"), [(2.0, "outside"), (-2.0, "inside")])
def test_one_sign_only(shift: float, says: str) -> None:
    x, s = circle(100)
    with pytest.raises(InputError, match=says):
        zero_crossings(x, s + shift)


def test_samples_on_a_line() -> None:
    x = np.linspace(-1, 1, 50)
    with pytest.raises(InputError, match="do not span"):
        zero_crossings(np.column_stack((x, 2 * x)), x)
    with pytest.raises(InputError, match="do not span"):
        zero_crossings(np.zeros((50, 2)), x)
