"""Fewer faces: closed stays closed, and how far the surface moved is what closed forms and points drawn on it say."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from metasdf.errors import UsageError
from metasdf.geometry.distance import unsigned_distance
from metasdf.geometry.isosurface import extract
from metasdf.geometry.mesh import Mesh, areas, components, is_watertight
from metasdf.geometry.sampling import surface_points
from metasdf.geometry.simplify import simplify

Floats = NDArray[np.float64]
PLACE = np.array([5e6, -2e5, 30.0])  # as maps have them


def ball(x: Floats) -> Floats:
    return np.linalg.norm(x, axis=1) - 0.8


def torus(x: Floats) -> Floats:
    return np.hypot(np.hypot(x[:, 0], x[:, 2]) - 0.6, x[:, 1]) - 0.2


def network(seed: int) -> Mesh:
    """The surface of a random sine network, cut by a ball: handles, sharp edges and separate pieces."""
    rng = np.random.default_rng(seed)
    first, second, last = 2 * rng.standard_normal((3, 64)), 0.175 * rng.standard_normal((64, 64)), rng.standard_normal(64) / 8
    shift = rng.standard_normal((2, 64))

    def sdf(x: Floats) -> Floats:
        return np.maximum(0.3 * np.sin(np.sin(x @ first + shift[0]) @ second + 0.3 * shift[1]) @ last, np.linalg.norm(x, axis=1) - 0.9)

    return extract(sdf, resolution=32).mesh


def genus_sum(mesh: Mesh) -> int:
    """V - E + F."""
    return len(mesh.vertices) - len(mesh.faces) // 2


def test_a_ball_and_how_far_it_moved() -> None:
    mesh = extract(ball, resolution=48).mesh
    found = simplify(mesh, 1000)
    assert len(found.mesh.faces) == 1000 and is_watertight(found.mesh)
    off = np.abs(ball(surface_points(found.mesh, 5000, rng=np.random.default_rng(0)).points)).max()
    assert 0.5 * off < found.moved < off + 0.002 < 0.02  # the old mesh is itself within 0.001 of the ball
    assert f"simplified from {len(mesh.faces):,} faces, which moved the surface by up to {found.moved:.3g} units" == found.note
    assert len(simplify(mesh, 0.1).mesh.faces) == pytest.approx(0.1 * len(mesh.faces), abs=1)


@pytest.mark.parametrize("seed", range(4))
def test_networks_stay_closed_and_whole(seed: int) -> None:
    mesh = network(seed)
    for share in (0.3, 0.05):
        found = simplify(mesh, share)
        assert is_watertight(mesh) and is_watertight(found.mesh) and found.note.startswith("simplified")
        assert components(found.mesh).max() == components(mesh).max() and genus_sum(found.mesh) == genus_sum(mesh)
        drawn = surface_points(found.mesh, 3000, rng=np.random.default_rng(0)).points
        assert unsigned_distance(mesh, drawn).max() < 1.3 * found.moved + 1e-9


def test_far_from_the_origin_and_in_small_units() -> None:
    """Places and units change nothing but rounding: 5 million metres away, or in thousandths."""
    mesh = network(1)
    here = simplify(mesh, 500)
    for scale, shift in ((1.0, PLACE), (1e-3, 0.0)):
        there = simplify(Mesh(mesh.vertices * scale + shift, mesh.faces), 500)
        assert len(there.mesh.faces) == 500 and is_watertight(there.mesh)
        assert there.moved / scale == pytest.approx(here.moved, rel=0.1)
        assert areas(there.mesh).sum() / scale**2 == pytest.approx(areas(here.mesh).sum(), rel=1e-3)


def test_no_hole_is_closed_to_get_there() -> None:
    found = simplify(extract(torus, resolution=32).mesh, 4)
    assert 4 < len(found.mesh.faces) < 30 and genus_sum(found.mesh) == 0 and "not to 4: fewer would close a hole" in found.note


def test_what_cannot_be_simplified_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = extract(ball, resolution=16).mesh
    assert simplify(mesh, 10**6).mesh is mesh and simplify(mesh, len(mesh.faces)).moved == 0
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, -1, 0.0]])
    fan = Mesh(corners, np.array([[0, 1, 2], [1, 0, 3], [0, 1, 4], [0, 2, 3], [0, 3, 4]]))
    kept = simplify(fan, 4)
    assert kept.mesh is fan and "one of them has more than two faces" in kept.note
    with pytest.raises(UsageError, match="3 faces enclose nothing"):
        simplify(mesh, 3)
    monkeypatch.setattr("metasdf.geometry.simplify.collapsed", lambda mesh, faces: Mesh(mesh.vertices, mesh.faces[1:]))
    torn = simplify(mesh, 100)
    assert torn.mesh is mesh and "would no longer hang together" in torn.note
