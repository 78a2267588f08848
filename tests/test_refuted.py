"""Pieces of a surface that observed distances refute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from metasdf.fields import FieldSpec, initialise
from metasdf.geometry.frame import Frame
from metasdf.geometry.isosurface import extract
from metasdf.geometry.mesh import Mesh, components, concatenate
from metasdf.geometry.refuted import MARGIN, drop_refuted
from metasdf.heads import Distance
from metasdf.prior import SDF, load_sdf


def ball(centre: tuple[float, float, float], radius: float) -> Mesh:
    return extract(lambda x: np.linalg.norm(x - np.array(centre), axis=1) - radius, resolution=64).mesh


LARGE, SPECK = ball((-0.3, 0, 0), 0.4), ball((0.6, 0, 0), 0.1)


def of_large(x: np.ndarray) -> np.ndarray:
    return np.linalg.norm(x - np.array((-0.3, 0, 0)), axis=1) - 0.4


def samples(n: int = 300) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).uniform(-1, 1, (n, 3))
    return x, of_large(x)


def test_a_speck_where_the_distances_know_of_nothing_goes() -> None:
    kept = drop_refuted(concatenate([SPECK, LARGE]), *samples())
    assert kept.dropped == 1
    assert np.array_equal(kept.mesh.vertices, LARGE.vertices) and np.array_equal(kept.mesh.faces, LARGE.faces)


def test_what_the_distances_agree_with_stays() -> None:
    both = concatenate([SPECK, LARGE])
    x, s = samples(3000)
    s = np.minimum(s, np.linalg.norm(x - np.array((0.6, 0, 0)), axis=1) - 0.1)
    kept = drop_refuted(both, x, s)
    assert kept.dropped == 0 and kept.mesh is both


def test_a_ball_refutes_no_surface_at_its_border() -> None:
    """One point in the speck's middle, whose ball reaches beyond the speck's farthest vertex by a little more than the margin, or a little less."""
    both, x = concatenate([SPECK, LARGE]), np.array([[0.6, 0.0, 0.0]])
    farthest = np.linalg.norm(SPECK.vertices - x, axis=1).max()
    for s, dropped in ((farthest + MARGIN * 1.01, 1), (farthest + MARGIN * 0.99, 0), (-farthest - MARGIN * 1.01, 1)):
        assert drop_refuted(both, x, np.array([s])).dropped == dropped


def test_the_largest_piece_stays_whatever_is_said() -> None:
    x, s = np.zeros((1, 3)), np.array([10.0])
    assert drop_refuted(LARGE, x, s) == (LARGE, 0)
    kept = drop_refuted(concatenate([LARGE, SPECK]), x, s)
    assert kept.dropped == 1 and np.array_equal(kept.mesh.vertices, LARGE.vertices)


@pytest.mark.parametrize("n", [0, 5])
def test_distances_that_say_nothing(n: int) -> None:
    both = concatenate([SPECK, LARGE])
    assert drop_refuted(both, np.zeros((n, 3)), np.full(n, MARGIN / 2)) == (both, 0)


def two_balls(known: np.ndarray | None) -> SDF:
    """A field of two balls, the smaller of which is at (0.6, 0, 0), in the units of a frame."""
    spec = FieldSpec(in_dim=3, width=8, hidden_layers=1)
    sdf = SDF([initialise(spec)], spec, Distance(), Frame((100.0, 0.0, 0.0), 0.5), known=known)
    sdf.at_field = lambda x: np.minimum(of_large(x), np.linalg.norm(x - np.array((0.6, 0, 0)), axis=1) - 0.1)  # type: ignore[method-assign]
    return sdf


def test_a_fit_has_no_piece_that_its_observations_refute() -> None:
    plain = two_balls(None).extract(resolution=48)
    found = two_balls(np.column_stack(samples())).extract(resolution=48)
    assert components(plain.mesh).max() == 1 and components(found.mesh).max() == 0
    assert plain.notes == () and found.notes == ("pieces of the surface where the observed distances say that none can be: 1, dropped",)
    assert found.watertight and not found.clipped
    assert found.mesh.vertices[:, 0].max() < 100 + 0.15 / 0.5 and plain.mesh.vertices[:, 0].max() > 100 + 0.65 / 0.5


@pytest.mark.parametrize("dropped", [True, False])
def test_a_surface_that_leaves_the_cube(dropped: bool) -> None:
    """If only the dropped piece did, the mesh is closed; if what is kept does, it is not."""
    sdf = two_balls(np.column_stack(samples()))
    middle = np.array((0.95 if dropped else 0.6, 0, 0))
    large = of_large if dropped else lambda x: np.linalg.norm(x - np.array((-0.3, 0, 0)), axis=1) - 0.75
    sdf.at_field = lambda x: np.minimum(large(x), np.linalg.norm(x - middle, axis=1) - 0.1)  # type: ignore[method-assign]
    found = sdf.extract(resolution=48)
    assert len(found.notes) == 1 and components(found.mesh).max() == 0
    assert (found.clipped, found.watertight) == ((False, True) if dropped else (True, False))


def test_what_is_known_is_saved(tmp_path: Path) -> None:
    known = np.column_stack(samples()).astype(np.float32)
    two_balls(known).save(tmp_path / "a.safetensors")
    again = load_sdf(tmp_path / "a.safetensors")
    assert again.known is not None and np.array_equal(again.known, known) and again.known.dtype == np.float32
    two_balls(None).save(tmp_path / "b.safetensors")
    assert load_sdf(tmp_path / "b.safetensors").known is None
