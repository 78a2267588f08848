from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from solids import DEFECTS, ball, box, brute_force, capsule, torus

from metasdf.errors import InputError
from metasdf.geometry.distance import unsigned_distance
from metasdf.geometry.mesh import Mesh

POINTS = np.random.default_rng(0).uniform(-1.5, 1.5, (300, 3))


@pytest.mark.parametrize("mesh", [box(cuts=3), ball(2), torus(20, 10), capsule(2)], ids=["box", "ball", "torus", "capsule"])
def test_equals_the_plain_form(mesh: Mesh) -> None:
    assert np.abs(unsigned_distance(mesh, POINTS) - brute_force(mesh, POINTS)).max() < 1e-15


def test_box_in_closed_form() -> None:
    size = np.array([1, 2, 0.5])
    beyond = np.abs(POINTS) - size / 2
    truth = np.linalg.norm(np.maximum(beyond, 0), axis=1) + np.minimum(beyond.max(1), 0)
    assert np.abs(unsigned_distance(box(size=size, cuts=2), POINTS) - np.abs(truth)).max() < 1e-15


@pytest.mark.parametrize("defect", DEFECTS)
def test_defects_are_no_matter(defect: str) -> None:
    mesh = DEFECTS[defect](ball(2))
    assert np.abs(unsigned_distance(mesh, POINTS) - brute_force(mesh, POINTS)).max() < 1e-15


def test_on_the_surface() -> None:
    mesh = ball(3)
    assert (unsigned_distance(mesh, mesh.vertices) == 0).all()
    assert unsigned_distance(mesh, mesh.vertices[mesh.faces].mean(1)).max() < 1e-15


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-9, 1e9), st.floats(0, 1e3))
def test_moves_and_scales_with_the_mesh(seed: int, scale: float, shift: float) -> None:
    """`shift` in sizes of the mesh: of its digits, that many are lost."""
    rng = np.random.default_rng(seed)
    turn, move = np.linalg.qr(rng.normal(size=(3, 3)))[0], rng.uniform(-shift, shift, 3)
    mesh = box(cuts=2)
    there = Mesh((mesh.vertices @ turn.T + move) * scale, mesh.faces)
    assert np.abs(unsigned_distance(there, (POINTS @ turn.T + move) * scale) / scale - unsigned_distance(mesh, POINTS)).max() < 4e-15 * (1 + shift)


def test_memory_is_bounded() -> None:
    """Beside the points, the result and two numbers for each point, no more for many points than for few."""
    mesh, peaks = ball(2), []
    for n in (150_000, 450_000):
        x = np.random.default_rng(0).uniform(-1, 1, (n, 3))
        tracemalloc.start()
        unsigned_distance(mesh, x)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / 300_000 < 16 * 8


def test_one_face_and_none() -> None:
    one = Mesh(np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0.0]]), np.array([[0, 1, 2]]))
    assert np.allclose(unsigned_distance(one, [[0, 0, 3], [3, 0, 0]]), [3, 2])
    with pytest.raises(InputError, match="no faces"):
        unsigned_distance(Mesh(one.vertices, one.faces[:0]), POINTS)
