"""Shapes drawn by dice: always the same ones, always solid, and never twice alike."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from test_solids import is_watertight, volume

from metasdf.data.procedural import CATEGORIES, procedural_model, procedural_parameters, procedural_pieces, procedural_shape
from metasdf.data.procedural.pieces import Dice, loft, outline, ring, slab, tube
from metasdf.errors import UsageError
from metasdf.geometry.mesh import Mesh
from metasdf.geometry.signed import sdf_from_mesh
from metasdf.geometry.solids import inside_of_hulls, sdf_of_hulls, union_of_hulls

SHAPES = [(category, index) for category in CATEGORIES for index in range(12)]


def components(mesh: Mesh) -> int:
    edges = np.stack((mesh.faces, np.roll(mesh.faces, -1, 1)), -1).reshape(-1, 2)
    return connected_components(coo_array((np.ones(len(edges)), edges.T), shape=(len(mesh.vertices),) * 2), directed=False)[0]


def area(mesh: Mesh) -> float:
    a, b, c = mesh.vertices[mesh.faces].transpose(1, 0, 2)
    return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)


def hidden_faces(pieces: list[np.ndarray], mesh: Mesh) -> int:
    """Faces of which both sides are inside or both outside, as far as their size lets one tell."""
    a, b, c = mesh.vertices[mesh.faces].transpose(1, 0, 2)
    normal = np.cross(b - a, c - a)
    length = np.linalg.norm(normal, axis=1)
    wide = length > 1e-5 * np.linalg.norm(np.stack((b - a, c - b, a - c)), axis=-1).max(0)
    normal, middle, inside = normal[wide] / length[wide, None], ((a + b + c) / 3)[wide], inside_of_hulls(pieces)
    return int((inside(middle + 1e-7 * normal) | ~inside(middle - 1e-7 * normal)).sum())


@pytest.mark.parametrize(("category", "index"), SHAPES)
def test_one_solid_of_unit_size(category: str, index: int) -> None:
    mesh = procedural_shape(category, index, seed=3)
    assert mesh.vertices.dtype == np.float64 and mesh.faces.dtype == np.int64
    assert is_watertight(mesh) and components(mesh) == 1 and len(np.unique(mesh.vertices, axis=0)) == len(mesh.vertices)
    low, high = mesh.vertices.min(0), mesh.vertices.max(0)
    assert (high - low).max() == pytest.approx(1, abs=1e-8) and np.abs(low + high).max() < 1e-8
    assert 50 < len(mesh.faces) < 10_000
    assert volume(mesh) > 3e-4 and 2 * volume(mesh) / area(mesh) > 0.004  # the mean thickness: no sheets


@pytest.mark.parametrize("category", CATEGORIES)
def test_no_face_hides_within(category: str) -> None:
    """So the distance to the mesh is that to the solid's surface, inside too."""
    for index in range(4):
        pieces = procedural_pieces(category, index, seed=4)
        assert hidden_faces(pieces, union_of_hulls(pieces)) == 0


@pytest.mark.parametrize("category", CATEGORIES)
def test_exact_distance_and_that_of_any_mesh_agree(category: str) -> None:
    """The sign of the pieces, in closed form, is the sign that preparation finds from the mesh alone."""
    for index in range(3):
        pieces = procedural_pieces(category, index, seed=6)
        x = np.random.default_rng(index).uniform(-0.55, 0.55, (2000, 3))
        near = np.concatenate(pieces)[:: max(1, len(np.concatenate(pieces)) // 1000)]
        x = np.concatenate((x, near + np.random.default_rng(index).normal(0, 0.01, near.shape)))
        exact, found = sdf_of_hulls(pieces)(x), sdf_from_mesh(union_of_hulls(pieces))(x)
        assert (exact < 0).any() and np.array_equal(exact > 0, found > 0)
        assert np.abs(exact - found).max() < 1e-8  # a general mesh's faces of no width to speak of may be left out


def test_the_same_whatever_came_before() -> None:
    first = [procedural_shape(category, 5, seed=0) for category in CATEGORIES]
    again = [procedural_shape(category, 5, seed=0) for category in reversed(CATEGORIES)][::-1]
    assert all(np.array_equal(a.vertices, b.vertices) and np.array_equal(a.faces, b.faces) for a, b in zip(first, again, strict=True))


def test_the_same_in_another_process() -> None:
    script = """if True:
        import hashlib
        from metasdf.data.procedural import CATEGORIES, procedural_shape
        print(*[hashlib.sha256(procedural_shape(c, 2, seed=1).vertices).hexdigest() for c in CATEGORIES])"""
    once, twice = (subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120).stdout for _ in range(2))
    assert once == twice and len(set(once.split())) == len(CATEGORIES)


@pytest.mark.parametrize("category", CATEGORIES)
def test_parameters_are_short_and_say_all(category: str) -> None:
    model = procedural_model(category, 1, seed=2)
    parameters = procedural_parameters(category, 1, seed=2)
    assert json.loads(json.dumps(parameters)) == parameters == asdict(model)
    assert all(np.array_equal(a, b) for a, b in zip(model.build(), procedural_model(category, 1, seed=2).build(), strict=True))


@pytest.mark.parametrize("category", CATEGORIES)
def test_no_two_alike(category: str) -> None:
    drawn = [json.dumps(procedural_parameters(category, index, seed=seed)) for seed in range(3) for index in range(100)]
    assert len(set(drawn)) == 300
    boxes = [np.ptp(np.concatenate(procedural_pieces(category, index, seed=0)), axis=0) for index in range(40)]
    assert np.std(boxes, axis=0).max() > 0.05


WORDS = {"tables": ("base", 9), "chairs": ("base", 6), "benches": ("base", 6), "planes": ("kind", 10)}


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_kind_is_drawn(category: str) -> None:
    field, count = WORDS[category]
    drawn = [procedural_parameters(category, index, seed=0)[field] for index in range(400)]
    words, times = np.unique(drawn, return_counts=True)
    assert len(words) == count and times.max() < 240, dict(zip(words, times, strict=True))


def test_tables_stand_and_are_flat_on_top() -> None:
    for index in range(10):
        mesh = procedural_shape("tables", index, seed=0)
        a, b, c = mesh.vertices[mesh.faces].transpose(1, 0, 2)
        y, normal = mesh.vertices[:, 1], np.cross(b - a, c - a)
        on_top = (mesh.vertices[mesh.faces][:, :, 1] > y.max() - 1e-6).all(1)
        assert normal[on_top, 1].sum() / 2 > 0.4 * np.prod(np.ptp(mesh.vertices, axis=0)[[0, 2]])


def test_chairs_and_benches_lean_back_from_the_front() -> None:
    """Their backs are at -z."""
    for category in ("chairs", "benches"):
        for index in range(40):
            if procedural_model(category, index, seed=0).back is not None:
                pieces = np.concatenate(procedural_pieces(category, index, seed=0))
                assert pieces[pieces[:, 1] > 0.9 * pieces[:, 1].max(), 2].mean() < 0


def test_aeroplanes_fly_towards_minus_x() -> None:
    """The fin stands at the tail; both wings are alike (blades turn, so they may stand out)."""
    for index in range(20):
        mesh, model = procedural_shape("planes", index, seed=0), procedural_model("planes", index, seed=0)
        middle = mesh.vertices[np.abs(mesh.vertices[:, 2]) < 0.02]
        if model.tail_kind in ("low", "T", "cross") and model.kind != "biplane":
            assert middle[middle[:, 1].argmax(), 0] > 0.1
        assert abs(mesh.vertices[:, 2].max() + mesh.vertices[:, 2].min()) < 1e-6


def test_what_does_not_exist() -> None:
    with pytest.raises(UsageError, match="lamps"):
        procedural_shape("lamps", 0, seed=0)
    for index, seed in ((-1, 0), (0, -1)):
        with pytest.raises(UsageError, match="negative"):
            procedural_shape("tables", index, seed=seed)


def test_dice() -> None:
    dice = Dice(np.random.default_rng(0))
    draws = [dice.pick(often=3, seldom=1, never=0) for _ in range(2000)]
    assert set(draws) == {"often", "seldom"} and 1400 < draws.count("often") < 1600
    assert {dice.count(2, 4) for _ in range(100)} == {2, 3, 4} and {dice.word("a a b") for _ in range(50)} == {"a", "b"}
    values = [dice.between(0.1, 0.2) for _ in range(100)]
    assert min(values) >= 0.1 and max(values) <= 0.2 and all(round(v, 4) == v for v in values)


@pytest.mark.parametrize("seed", range(6))
def test_bent_bars_have_no_slits(seed: int) -> None:
    """Pieces that meet in a face are joined: one border, no face within, for whatever direction rounding takes."""
    rng = np.random.default_rng(seed)
    path = np.cumsum(rng.normal(size=(6, 3)) * 0.1 + (0.4, 0.1, -0.2), axis=0)
    pieces = tube(path, 0.03, n=9)
    mesh = union_of_hulls(pieces)
    assert components(mesh) == 1 and is_watertight(mesh) and hidden_faces(pieces, mesh) == 0


def test_a_loft_keeps_its_shape() -> None:
    """What joins its pieces lies within them: the volume is that of the frusta."""
    radii, heights, n = (0.3, 0.5, 0.2, 0.2), (0.0, 0.4, 0.9, 1.0), 24
    pieces = loft([ring((0, y, 0), (r, 0, 0), (0, 0, r), n=n) for y, r in zip(heights, radii, strict=True)])
    base = n / 2 * np.sin(2 * np.pi / n)
    frusta = [base * h * (a * a + a * b + b * b) / 3 for a, b, h in zip(radii, radii[1:], np.diff(heights), strict=False)]
    assert volume(union_of_hulls(pieces)) == pytest.approx(sum(frusta), rel=1e-12)


@pytest.mark.parametrize("kind", ["rectangle", "trapezoid", "rounded", "round", "oval", "hexagon", "octagon"])
def test_outlines_fill_their_size(kind: str) -> None:
    shape = outline(kind, 1.4, 0.8, corner=0.1)
    assert np.allclose(np.ptp(shape, axis=0), (1.4, 0.8)) and np.allclose(shape.max(0), (0.7, 0.4))
    mesh = union_of_hulls(slab(shape, 0.2, 0.3, bevel=0.02))
    assert is_watertight(mesh) and mesh.vertices[:, 1].min() == 0.2 and mesh.vertices[:, 1].max() == 0.3
