"""Polygons become triangles that cover them exactly: all turn one way, and their areas add up to the polygon's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from metasdf.errors import InputError
from metasdf.geometry import polygons
from metasdf.geometry.mesh import Mesh, areas, face_normals
from metasdf.geometry.polygons import clip_ears, mesh_from_polygons

L_SHAPE = [(0, 0), (2, 0), (2, 1), (1, 1), (1, 2), (0, 2)]
DART = [(0, 1), (-1, -1), (0, -0.5), (1, -1)]  # concave at its third corner
COMB = [(0, 0), (5, 0), (5, 3), (4.5, 1), (4, 3), (3.5, 1), (3, 3), (2.5, 1), (2, 3), (1.5, 1), (1, 3), (0.5, 1), (0, 3)]
PLUS = [(1, 0), (2, 0), (2, 1), (3, 1), (3, 2), (2, 2), (2, 3), (1, 3), (1, 2), (0, 2), (0, 1), (1, 1)]
STRAIGHT = [(0, 0), (1, 0), (2, 0), (2, 1), (2, 2), (1, 2), (0, 2), (0, 1)]  # a square with a corner amid each side
FRAME = [(0, 0), (3, 0), (3, 3), (0, 3), (0, 0), (1, 1), (1, 2), (2, 2), (2, 1), (1, 1)]  # a hole, joined by a double edge
TWICE = [(0, 0), (2, 0), (2, 0), (2, 1), (1, 1), (1, 1), (1, 2), (0, 2)]  # repeated corners


def shoelace(points: np.ndarray) -> float:
    x, y = np.asarray(points, np.float64).T
    return float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2)


def one(points: np.ndarray) -> Mesh:
    return mesh_from_polygons(points, np.arange(len(points)), [len(points)])


def in_space(points: list[tuple[float, float]], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The polygon somewhere in space, and its normal there."""
    rotation = Rotation.random(random_state=seed).as_matrix()
    flat = np.column_stack((points, np.zeros(len(points))))
    return flat @ rotation.T * 7 + (100, -50, 3), rotation[:, 2]


@pytest.mark.parametrize("points", [L_SHAPE, DART, COMB, PLUS, STRAIGHT, FRAME, TWICE], ids=list("ldcpsft"))
@pytest.mark.parametrize("seed", range(4))
def test_covered_exactly(points: list[tuple[float, float]], seed: int) -> None:
    for first in range(len(points)):  # whichever corner comes first
        there, normal = in_space(points[first:] + points[:first], seed)
        for corners, direction in ((there, normal), (there[::-1], -normal)):
            mesh = one(corners)
            assert len(mesh.faces) == len(points) - 2
            assert areas(mesh).sum() == pytest.approx(49 * shoelace(np.array(points)), rel=1e-12)
            turned = np.einsum("ij,j->i", face_normals(mesh)[areas(mesh) > 1e-9], direction)
            assert np.allclose(turned, 1)


def test_no_flat_triangle_where_there_need_be_none() -> None:
    assert areas(one(in_space(STRAIGHT, 0)[0])).min() > 1


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 40), st.integers(0, 2**32 - 1))
def test_stars(n: int, seed: int) -> None:
    """Any distances from the middle, in order of direction, make a simple polygon."""
    rng = np.random.default_rng(seed)
    angles = (np.arange(n) + rng.uniform(0, 0.9, n)) * 2 * np.pi / n
    points = rng.uniform(0.05, 1, n)[:, None] * np.column_stack((np.cos(angles), np.sin(angles)))
    if n == 3 or np.diff(angles, append=angles[0] + 2 * np.pi).max() >= np.pi:
        return
    there, normal = in_space(points.tolist(), seed % 1000)
    mesh = one(there)
    assert areas(mesh).sum() == pytest.approx(49 * shoelace(points), rel=1e-10)
    assert (np.einsum("ij,j->i", face_normals(mesh)[areas(mesh) > 1e-9], normal) > 0).all()


def test_convex_ones_are_fans() -> None:
    angles = np.arange(7) * 2 * np.pi / 7
    mesh = one(np.column_stack((np.cos(angles), np.sin(angles), 0 * angles)))
    assert mesh.faces.tolist() == [[0, k, k + 1] for k in range(1, 6)]


def test_many_at_once() -> None:
    """Different sizes in one call, points and lines among them."""
    vertices = np.vstack([np.column_stack((np.array(p) + 10 * k, np.full(len(p), k))) for k, p in enumerate((L_SHAPE, DART, PLUS))])
    corners = [0, 1, *range(6), 3, *range(6, 10), *range(10, 22), 4, 5, 6]
    mesh = mesh_from_polygons(vertices, corners, [2, 6, 1, 4, 12, 3])
    assert len(mesh.faces) == 4 + 2 + 10 + 1
    assert areas(mesh)[(mesh.faces < 22).all(1)].sum() > shoelace(np.array(L_SHAPE)) + shoelace(np.array(DART)) + shoelace(np.array(PLUS))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.sampled_from([0.0, 0.5, 1.0, 3.0])] * 3), min_size=3, max_size=24))
def test_nonsense_ends(points: list[tuple[float, float, float]]) -> None:
    """Crossing, flat, warped or repeated: the right number of triangles out of the polygon's own corners."""
    mesh = one(np.array(points))
    assert mesh.faces.shape == (len(points) - 2, 3) and 0 <= mesh.faces.min() <= mesh.faces.max() < len(points)


def test_crossing_ones_do_not_take_long() -> None:
    points = np.random.default_rng(0).uniform(-1, 1, (400, 2))
    assert len(clip_ears(points.tolist())) == 398


@pytest.mark.parametrize(("corners", "bad"), [([0, 1, 4], "4"), ([0, 1, -1], "-1"), ([0, 1, 2**62], str(2**62))])
def test_corners_out_of_range(corners: list[int], bad: str) -> None:
    with pytest.raises(InputError, match=f"names vertex {bad}"):
        mesh_from_polygons(np.zeros((4, 3)), corners, [3], where="here")


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_corners_nowhere(bad: float) -> None:
    with pytest.raises(InputError, match="not finite"):
        mesh_from_polygons(np.array([[0, 0, 0], [1, 0, 0], [1, bad, 0], [0, 1, 0]]), [0, 1, 2, 3], [4])
    assert len(mesh_from_polygons(np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [bad, 1, 0]]), [0, 1, 2], [3]).faces) == 1  # nobody uses it


def test_too_many_corners(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polygons, "MAX_CONCAVE_CORNERS", 5)
    with pytest.raises(InputError, match="6 corners"):
        one(np.column_stack((L_SHAPE, np.zeros(6))))
