"""Closed-form solids: against points spread over their surfaces, their insides written down by hand, and the laws of distances."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree
from scipy.stats import special_ortho_group

from metasdf.errors import InputError
from metasdf.geometry import shapes
from metasdf.geometry.shapes import Solid, mirrored, moved, scaled

Array = np.ndarray
L_SHAPE = np.array([(-0.8, -0.6), (0.7, -0.6), (0.7, 0.1), (-0.1, 0.1), (-0.1, 0.7), (-0.8, 0.7)])


def grid(n: int, low: float, high: float, *, ends: bool = True) -> Array:
    return np.linspace(low, high, n, endpoint=ends)


def revolved(profile: Array, n: int = 200) -> Array:
    """Points (r, y) of a profile turned around the y axis."""
    turn = grid(n, 0, 2 * np.pi, ends=False)
    r, y = profile.T
    return np.stack((np.outer(r, np.cos(turn)), np.broadcast_to(y[:, None], (len(r), n)), np.outer(r, np.sin(turn))), -1).reshape(-1, 3)


def polyline(*corners: tuple[float, float], n: int = 120) -> Array:
    return np.concatenate([np.linspace(a, b, n) for a, b in pairwise(corners)])


def box_surface(half: tuple[float, float, float], n: int = 90) -> Array:
    faces = []
    for axis in range(3):
        u, v = np.meshgrid(grid(n, -1, 1), grid(n, -1, 1))
        for side in (-1.0, 1.0):
            faces.append(np.insert(np.stack((u.ravel(), v.ravel()), -1), axis, side, axis=1) * half)
    return np.concatenate(faces)


def rounded_surface(half: tuple[float, float, float], rounding: float) -> Array:
    """A point of the inner box's surface, edge or corner, and `rounding` along a normal there."""
    rng, core = np.random.default_rng(0), np.subtract(half, rounding)
    free = rng.random((60_000, 3)) < 0.45
    free = free[~free.all(1)]
    normal = np.where(free, 0, rng.normal(size=free.shape))
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    return np.where(free, rng.uniform(-1, 1, free.shape), np.sign(normal)) * core + rounding * normal


def prism_surface(outline: Array, half: float) -> Array:
    closed = np.concatenate((outline, outline[:1]))
    side = np.concatenate([np.linspace(a, b, 100) for a, b in pairwise(closed)])
    walls = np.concatenate([np.insert(side, 1, y, axis=1) for y in grid(80, -half, half)])
    spread = np.random.default_rng(0).uniform(outline.min(0), outline.max(0), (40_000, 2))
    lids = spread[in_polygon(spread, outline)]
    return np.concatenate([walls, np.insert(lids, 1, half, axis=1), np.insert(lids, 1, -half, axis=1)])


def in_polygon(p: Array, outline: Array) -> Array:
    """By the winding angle, not by the crossings that the code counts."""
    a, b = outline - p[:, None], np.roll(outline, -1, 0) - p[:, None]
    return np.abs(np.arctan2(a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0], (a * b).sum(-1)).sum(1)) > np.pi


def around(x: Array) -> Array:
    return np.hypot(x[:, 0], x[:, 2])


ARC = grid(200, -np.pi / 2, np.pi / 2)
CASES: dict[str, tuple[Solid, Array, Callable[[Array], Array]]] = {
    "sphere": (shapes.sphere(0.7), revolved(0.7 * np.stack((np.cos(ARC), np.sin(ARC)), -1)), lambda x: (x**2).sum(1) < 0.49),
    "box": (shapes.box((0.5, 0.3, 0.8)), box_surface((0.5, 0.3, 0.8)), lambda x: (np.abs(x) < (0.5, 0.3, 0.8)).all(1)),
    "rounded box": (shapes.box((0.5, 0.4, 0.8), rounding=0.15), rounded_surface((0.5, 0.4, 0.8), 0.15),
                    lambda x: (np.maximum(np.abs(x) - (0.35, 0.25, 0.65), 0) ** 2).sum(1) < 0.15**2),
    "cylinder": (shapes.cylinder(0.4, 0.7), revolved(polyline((0, -0.7), (0.4, -0.7), (0.4, 0.7), (0, 0.7))),
                 lambda x: (around(x) < 0.4) & (abs(x[:, 1]) < 0.7)),
    "capsule": (shapes.capsule(0.3, 0.5), revolved(np.concatenate((0.3 * np.stack((np.cos(ARC), np.sin(ARC) + np.sign(ARC) * 5 / 3), -1),
                                                                   polyline((0.3, -0.5), (0.3, 0.5))))),
                lambda x: around(x) ** 2 + np.maximum(abs(x[:, 1]) - 0.5, 0) ** 2 < 0.09),
    "torus": (shapes.torus(0.6, 0.2), revolved(np.stack((0.6 + 0.2 * np.cos(2 * ARC), 0.2 * np.sin(2 * ARC)), -1)),
              lambda x: (around(x) - 0.6) ** 2 + x[:, 1] ** 2 < 0.04),
    "frustum": (shapes.frustum(0.3, 0.6, half_height=0.5), revolved(polyline((0, -0.5), (0.3, -0.5), (0.6, 0.5), (0, 0.5))),
                lambda x: (abs(x[:, 1]) < 0.5) & (around(x) < 0.45 + 0.3 * x[:, 1])),
    "cone": (shapes.frustum(0.6, 0.0, half_height=0.5), revolved(polyline((0, -0.5), (0.6, -0.5), (0, 0.5))),
             lambda x: (abs(x[:, 1]) < 0.5) & (around(x) < 0.3 - 0.6 * x[:, 1])),
    "prism": (shapes.prism(L_SHAPE, 0.4), prism_surface(L_SHAPE, 0.4), lambda x: (abs(x[:, 1]) < 0.4) & in_polygon(x[:, ::2], L_SHAPE)),
}  # fmt: skip


def scattered(n: int, *, seed: int = 0) -> Array:
    return np.random.default_rng(seed).uniform(-1.2, 1.2, (n, 3))


@pytest.mark.parametrize("name", CASES)
def test_against_points_on_the_surface(name: str) -> None:
    solid, surface, inside = CASES[name]
    assert np.abs(solid(surface)).max() < 1e-12
    x = scattered(1500)
    distance, nearest = solid(x), cKDTree(surface).query(x)[0]
    assert (np.abs(distance) <= nearest + 1e-12).all()  # no surface point is nearer
    assert (nearest - np.abs(distance)).max() < 0.03 and np.median(nearest - np.abs(distance)) < 1e-3  # and one is as near, up to their spacing
    assert np.array_equal(distance < 0, inside(x))


@pytest.mark.parametrize("name", CASES)
def test_eikonal(name: str) -> None:
    """The gradient has length 1, but on the few points within a step of where two nearest points compete."""
    solid, x, h = CASES[name][0], scattered(2000, seed=1), 1e-6
    gradient = np.stack([(solid(x + e) - solid(x - e)) / (2 * h) for e in np.eye(3) * h], -1)
    error = np.abs(np.linalg.norm(gradient, axis=1) - 1)
    assert (error < 1e-6).mean() > 0.995
    assert np.linalg.norm(gradient, axis=1).max() < 1 + 1e-6


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(CASES)), st.integers(0, 2**32 - 1), st.floats(0.01, 100))
def test_motion_scale_and_mirror(name: str, seed: int, factor: float) -> None:
    solid, rng = CASES[name][0], np.random.default_rng(seed)
    x, turn, shift, normal = rng.uniform(-1.2, 1.2, (50, 3)), special_ortho_group.rvs(3, random_state=rng), rng.normal(size=3), rng.normal(size=3)
    mirror = np.eye(3) - 2 * np.outer(normal, normal) / (normal @ normal)
    assert np.abs(moved(solid, rotation=turn, translation=shift)(x @ turn.T + shift) - solid(x)).max() < 1e-12
    assert np.abs(scaled(solid, factor)(x * factor) - solid(x) * factor).max() < 1e-12 * max(1, factor)
    assert np.abs(mirrored(solid, normal)(x @ mirror) - solid(x)).max() < 1e-12


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(CASES)), st.tuples(*[st.floats(-3, 3)] * 6))
def test_distances_never_change_faster_than_their_points(name: str, six: tuple[float, ...]) -> None:
    a, b = np.array(six).reshape(2, 1, 3)
    solid = CASES[name][0]
    assert abs(solid(a) - solid(b))[0] <= np.linalg.norm(a - b) + 1e-12


def test_union_is_exact_outside_and_a_bound_inside() -> None:
    """Two boxes that make an L: the prism over the L is their union in closed form."""
    y = 0.3
    first = moved(shapes.box((0.75, y, 0.35)), translation=(-0.05, 0, -0.25))
    second = moved(shapes.box((0.35, y, 0.65)), translation=(-0.45, 0, 0.05))
    x, both, truth = scattered(5000), shapes.union(first, second), shapes.prism(L_SHAPE, y)
    outside = truth(x) > 0
    assert np.abs(both(x) - truth(x))[outside].max() < 1e-12
    assert (both(x) >= truth(x) - 1e-12).all() and (both(x) - truth(x)).max() > 0.03


@pytest.mark.parametrize("wrong", [
    lambda: shapes.sphere(0), lambda: shapes.sphere(np.nan), lambda: shapes.box((1, 0, 1)), lambda: shapes.box((1, 1, 1), rounding=1.1),
    lambda: shapes.cylinder(1, -1), lambda: shapes.torus(0.2, 0.3), lambda: shapes.frustum(0, 0, half_height=1), lambda: shapes.prism(L_SHAPE[:2], 1),
    lambda: shapes.prism(L_SHAPE * np.nan, 1), lambda: scaled(shapes.sphere(1), 0), lambda: moved(shapes.sphere(1), rotation=2 * np.eye(3)),
    lambda: mirrored(shapes.sphere(1), (0, 0, 0)), lambda: shapes.sphere(1)(np.zeros((4, 2))),
])  # fmt: skip
def test_what_has_no_meaning_is_refused(wrong: Callable[[], object]) -> None:
    with pytest.raises(InputError):
        wrong()
