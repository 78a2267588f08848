from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kstest
from solids import ball, box, brute_force, joined, sheet

from metasdf.errors import InputError, UsageError
from metasdf.geometry.mesh import Mesh, areas, face_normals
from metasdf.geometry.sampling import DEEPSDF_SPREADS, depth_view, near_surface, sdf_samples, surface_points, uniform
from metasdf.geometry.signed import MeshSDF


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_surface_points_are_on_their_faces() -> None:
    mesh = ball(2)
    on = surface_points(mesh, 500, rng=rng())
    assert brute_force(mesh, on.points).max() < 1e-15
    a, b, c = (mesh.vertices[column] for column in mesh.faces[on.faces].T)
    weights = np.linalg.solve(np.stack((a, b, c), -1), on.points[..., None])[..., 0]
    assert weights.min() > -1e-12 and np.allclose(weights.sum(1), 1)
    assert np.allclose(on.normals, face_normals(mesh)[on.faces]) and np.allclose(np.linalg.norm(on.normals, axis=1), 1)


def test_surface_points_are_uniform() -> None:
    """By area between faces, and within one face: along any direction a square's points are uniform."""
    corners = np.array([[[0, 0, 0], [0, 1, 0]], [[1, 0, 0], [1, 1, 0.0]]])
    square = sheet(corners)
    on = surface_points(joined(square, Mesh(2 * square.vertices + np.array([5, 0, 0]), square.faces)), 5000, rng=rng())
    first = on.points[on.faces < 2]
    assert len(first) == pytest.approx(1000, abs=100)  # a fifth of the area; 3.5 standard deviations
    for axis in (0, 1):
        assert kstest(first[:, axis], "uniform").pvalue > 0.01
    assert kstest((first[:, 0] + first[:, 1]) / 2, "triang", (0.5,)).pvalue > 0.01


def test_flat_faces_get_no_points() -> None:
    mesh = Mesh(np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [2, 0, 0.0]]), np.array([[0, 1, 3], [0, 1, 2], [0, 1, 3]]))
    assert (surface_points(mesh, 100, rng=rng()).faces == 1).all()
    with pytest.raises(InputError, match="no area"):
        surface_points(Mesh(mesh.vertices, mesh.faces[:1]), 1, rng=rng())


def test_spreads() -> None:
    """Far from its edges, a plane's distances are the noise along the normal."""
    plane = sheet(np.array([[[0, 0, 0], [0, 9, 0]], [[9, 0, 0], [9, 9, 0.0]]]) * 100)
    x = near_surface(plane, 4001, rng=rng(), spreads=(0.5, 0.01))
    assert x[:2001, 2].std() == pytest.approx(0.5, rel=0.06) and x[2001:, 2].std() == pytest.approx(0.01, rel=0.06)
    assert np.allclose(DEEPSDF_SPREADS, (0.0707, 0.02236), rtol=1e-3)
    for bad in ((), (-1,)):
        with pytest.raises(UsageError):
            near_surface(plane, 5, rng=rng(), spreads=bad)


def test_samples() -> None:
    sdf = MeshSDF(ball(3, radius=0.9))
    x, s = sdf_samples(sdf, 5000, rng=rng())
    assert x.shape == (5000, 3) and np.array_equal(s, sdf(x)) and (s < 0).any() and (s > 0).any()
    assert np.abs(x[-300:]).max() <= 1 and np.abs(x[-300:]).max() > 0.98  # 6 % uniform in the cube, last
    near = np.abs(s[:4700])
    assert near[2350:].mean() == pytest.approx(near[:2350].mean() / 10**0.5, rel=0.1)
    assert np.abs(uniform(1000, rng=rng(), extent=2)).max() == pytest.approx(2, rel=0.01)


def test_the_generator_decides() -> None:
    sdf = MeshSDF(ball(2))
    draws = [sdf_samples(sdf, 100, rng=rng(seed)).x for seed in (0, 0, 1)]
    assert np.array_equal(draws[0], draws[1]) and not np.array_equal(draws[0], draws[2])


@pytest.mark.parametrize("direction", [(0, 0, -1), (1, 2, -3)])
def test_depth_view_of_a_ball(direction: tuple[float, ...]) -> None:
    """Half of it, pixel by pixel, over the sphere around its box; the share of pixels that see it is that of a disc."""
    mesh = ball(4)
    view = depth_view(mesh, direction, 64)
    d = np.array(direction) / np.linalg.norm(direction)
    assert np.abs(np.linalg.norm(view.points, axis=1) - 1).max() < 0.005 and brute_force(mesh, view.points[::50]).max() < 1e-6
    assert (view.points @ d).max() < 0.05 and (view.normals @ d).max() < 0
    assert np.abs(face_normals(mesh)[view.faces] - view.normals).max() < 1e-12
    assert len(view.points) == pytest.approx(64**2 * np.pi / 4 / 3, rel=0.02)  # the sphere around the box is sqrt(3) larger


def test_depth_view_hides_what_is_behind() -> None:
    front, back = box(centre=(0, 0, 3)), box(centre=(0, 0, -3), size=(2, 1, 1))
    mesh = joined(front, back)
    view = depth_view(mesh, (0, 0, -1), 40)
    assert view.points[:, 2].max() == pytest.approx(3.5, abs=1e-12)
    behind = view.points[view.points[:, 2] < 0]
    assert len(behind) and (np.abs(behind[:, 0]) > 0.5).all()
    near = depth_view(mesh, (0, 0, -1), 40, distance=0)  # the camera stands between them
    assert near.points[:, 2].max() < 0 and (np.abs(near.points[:, 0]) < 0.4).any()


def test_depth_view_of_either_side() -> None:
    mesh = ball(3)
    inside_out = Mesh(mesh.vertices, mesh.faces[:, ::-1])
    a, b = depth_view(mesh, (0, 1, 0), 16), depth_view(inside_out, (0, 1, 0), 16)
    assert np.allclose(a.points, b.points, atol=1e-12) and np.allclose(a.normals, b.normals)
    for bad in ((0, 0, 0), (1, 2), (np.nan, 0, 1)):
        with pytest.raises(UsageError):
            depth_view(mesh, bad, 8)
    assert areas(mesh).min() > 0
