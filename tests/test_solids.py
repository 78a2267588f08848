"""Unions of convex hulls: against closed forms, the winding number and volumes counted by chance."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import ConvexHull
from scipy.stats import special_ortho_group
from solids import brute_force

from metasdf.errors import InputError
from metasdf.geometry import shapes
from metasdf.geometry.mesh import Mesh
from metasdf.geometry.solids import inside_of_hulls, sdf_of_hulls, union, union_of_hulls

Array = np.ndarray


def corners(low: tuple[float, ...], high: tuple[float, ...]) -> Array:
    return np.stack(np.meshgrid(*zip(low, high, strict=True), indexing="ij"), -1).reshape(-1, 3)


def is_watertight(mesh: Mesh) -> bool:
    """Each edge is used once in each direction."""
    edges = np.stack((mesh.faces, np.roll(mesh.faces, -1, 1)), -1).reshape(-1, 2)
    forward, backward = (edges @ (len(mesh.vertices), 1) for edges in (edges, edges[:, ::-1]))
    return len(np.unique(forward)) == len(forward) and np.array_equal(np.sort(forward), np.sort(backward))


def volume(mesh: Mesh) -> float:
    a, b, c = mesh.vertices[mesh.faces].transpose(1, 0, 2)
    return float((a * np.cross(b, c)).sum() / 6)


def winding(mesh: Mesh, x: Array) -> Array:
    """The solid angle of all triangles as seen from x, over 4 pi: 1 inside a closed mesh that is oriented outwards, 0 outside."""
    a, b, c = (mesh.vertices[mesh.faces[:, k]] - x[:, None] for k in range(3))
    la, lb, lc = (np.linalg.norm(v, axis=-1) for v in (a, b, c))
    below = la * lb * lc + (a * b).sum(-1) * lc + (b * c).sum(-1) * la + (c * a).sum(-1) * lb
    return np.arctan2((a * np.cross(b, c)).sum(-1), below).sum(1) / (2 * np.pi)


def random_hulls(seed: int, n: int = 6) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(rng.integers(4, 20), 3)) * rng.uniform(0.1, 0.5) + rng.uniform(-0.5, 0.5, 3) for _ in range(n)]


@pytest.mark.parametrize("seed", range(12))
def test_random_hulls(seed: int) -> None:
    parts = random_hulls(seed)
    mesh = union_of_hulls(parts)
    assert mesh.vertices.dtype == np.float64 and mesh.faces.dtype == np.int64 and is_watertight(mesh)
    hulls = [ConvexHull(p).volume for p in parts]
    assert max(hulls) <= volume(mesh) * (1 + 1e-12) and volume(mesh) <= sum(hulls) * (1 + 1e-12)
    x = np.random.default_rng(seed).uniform(-1.5, 1.5, (400, 3))
    assert np.array_equal(inside_of_hulls(parts)(x), np.abs(winding(mesh, x) - 1) < 1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_each_face_is_a_border(seed: int) -> None:
    """Outwards of it is outside all parts, inwards inside one: no face hides within the union."""
    parts = random_hulls(seed, 12)
    mesh, inside = union_of_hulls(parts), inside_of_hulls(parts)
    a, b, c = mesh.vertices[mesh.faces].transpose(1, 0, 2)
    normal = np.cross(b - a, c - a)
    large = np.linalg.norm(normal, axis=1) > 1e-5
    normal, middle = normal[large] / np.linalg.norm(normal[large], axis=1, keepdims=True), ((a + b + c) / 3)[large]
    assert inside(middle - 1e-7 * normal).all() and not inside(middle + 1e-7 * normal).any()


def test_one_hull_is_the_hull() -> None:
    points = np.random.default_rng(0).normal(size=(200, 3))
    assert volume(union_of_hulls([points])) == pytest.approx(ConvexHull(points).volume, rel=1e-12)


def test_volume_of_overlap_counts_once() -> None:
    a, b = corners((0, 0, 0), (1, 1, 1)), corners((0.5, 0.25, 0.25), (1.5, 0.75, 0.75))
    assert volume(union_of_hulls([a, b])) == pytest.approx(1 + 0.125, rel=1e-14)
    assert volume(union_of_hulls([a, corners((1, 0, 0), (2, 1, 1))])) == pytest.approx(2, rel=1e-14)  # they share a face, and no face stays inside
    assert len(union_of_hulls([a, a]).faces) == 12


def test_exact_signed_distance_of_an_l() -> None:
    """Two overlapping boxes that make an L, whose distance is known in closed form: inside too, where the smaller distance is not exact."""
    outline = np.array([(-0.8, -0.6), (0.7, -0.6), (0.7, 0.1), (-0.1, 0.1), (-0.1, 0.7), (-0.8, 0.7)])
    parts = [corners((-0.8, -0.3, -0.6), (0.7, 0.3, 0.1)), corners((-0.8, -0.3, -0.6), (-0.1, 0.3, 0.7))]
    x = np.random.default_rng(0).uniform(-1.2, 1.2, (4000, 3))
    assert np.abs(sdf_of_hulls(parts)(x) - shapes.prism(outline, 0.3)(x)).max() < 1e-13


def test_exact_signed_distance_moves_with_the_parts() -> None:
    parts, rng = random_hulls(3), np.random.default_rng(0)
    turn, shift = special_ortho_group.rvs(3, random_state=rng), rng.normal(size=3)
    x = rng.uniform(-1.2, 1.2, (500, 3))
    there = sdf_of_hulls([3 * p @ turn.T + shift for p in parts])(3 * x @ turn.T + shift)
    assert np.abs(there - 3 * sdf_of_hulls(parts)(x)).max() < 1e-11


def test_signed_distance_against_the_plain_form() -> None:
    parts, x = random_hulls(1), np.random.default_rng(0).uniform(-1.2, 1.2, (500, 3))
    mesh = union_of_hulls(parts)
    truth = brute_force(mesh, x) * np.where(winding(mesh, x) > 0.5, -1, 1)
    assert np.abs(sdf_of_hulls(parts)(x) - truth).max() < 1e-14


def test_a_hollow_keeps_its_wall() -> None:
    """A surface within the solid that has volume stays: only leaves of no thickness go."""
    walls = [corners(low, high) for low, high in (((-1, -1, -1), (1, -0.5, 1)), ((-1, 0.5, -1), (1, 1, 1)), ((-1, -1, -1), (-0.5, 1, 1)),
                                                  ((0.5, -1, -1), (1, 1, 1)), ((-1, -1, -1), (1, 1, -0.5)), ((-1, -1, 0.5), (1, 1, 1)))]  # fmt: skip
    assert volume(union_of_hulls(walls)) == pytest.approx(8 - 1, rel=1e-14)
    assert sdf_of_hulls(walls)(np.array([(0.0, 0, 0), (0.7, 0, 0), (2, 0, 0)])) == pytest.approx([0.5, -0.2, 1.0], abs=1e-15)


def test_union_of_meshes_is_that_of_hulls() -> None:
    parts = random_hulls(5)
    both, one = union([union_of_hulls(parts[:3]), union_of_hulls(parts[3:])]), union_of_hulls(parts)
    assert is_watertight(both) and volume(both) == pytest.approx(volume(one), rel=1e-12)


CUBE = union_of_hulls([corners((0, 0, 0), (1, 1, 1))])


FLAT = np.insert(np.random.default_rng(0).normal(size=(9, 2)), 1, 0.0, axis=1)


@pytest.mark.parametrize(
    "points", [np.zeros((0, 3)), np.eye(3), np.zeros((9, 3)), np.eye(4), np.zeros(5), FLAT, np.full((8, 3), np.nan), np.full((8, 3), np.inf)]
)
def test_parts_without_volume_are_refused(points: Array) -> None:
    for use in (union_of_hulls, inside_of_hulls):
        with pytest.raises(InputError):
            use([points])


@pytest.mark.parametrize("mesh", [
    CUBE._replace(faces=CUBE.faces[1:]), CUBE._replace(faces=CUBE.faces[:, ::-1]), CUBE._replace(faces=CUBE.faces + 1),
    CUBE._replace(faces=CUBE.faces - 1), CUBE._replace(faces=CUBE.faces[:0]), CUBE._replace(faces=CUBE.faces[:, :2]),
    CUBE._replace(vertices=CUBE.vertices * np.nan), CUBE._replace(vertices=CUBE.vertices[:, :2]),
])  # fmt: skip
def test_meshes_that_are_no_solids_are_refused(mesh: Mesh) -> None:
    with pytest.raises(InputError):
        union([CUBE, mesh])


def test_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="at least one"):
        union_of_hulls([])
