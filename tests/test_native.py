"""What the installed native libraries answer, pinned: a new version that answers otherwise is noticed here first."""

from __future__ import annotations

import igl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from solids import ball, box, brute_force, joined

from metasdf.errors import InputError
from metasdf.geometry.mesh import Mesh, face_normals, is_watertight
from metasdf.geometry.native import CHUNK, Scene, Tree, coherent, marching_cubes, neighbours, winding_number

FLAT = Mesh(np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0.0]]), np.array([[0, 1, 2]]))


def test_closest_point() -> None:
    found = Tree(FLAT).closest([[0.2, 0.3, -2], [2, 0, 0], [-1, -1, 1], [0, 0, 0]])
    assert np.allclose(found.squared, [4, 1, 3, 0], rtol=1e-15) and found.squared[3] == 0
    assert np.allclose(found.point, [[0.2, 0.3, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]], atol=1e-15)
    assert found.face.tolist() == [0] * 4


def test_closest_face() -> None:
    mesh = ball(2)
    centres = mesh.vertices[mesh.faces].mean(1)
    assert np.array_equal(Tree(mesh).closest(1.1 * centres).face, np.arange(len(centres)))


@settings(max_examples=60, deadline=None)
@given(arrays(np.float64, (5, 3), elements=st.sampled_from([0, 1, 0.5, 1e-9, -3, 1e-5])), arrays(np.float64, (4, 3), elements=st.floats(-4, 4)))
def test_closest_on_needles_and_flat_faces(vertices: np.ndarray, x: np.ndarray) -> None:
    """Faces without area are segments or points, and no less exact."""
    faces = np.array([[0, 1, 2], [1, 2, 3], [2, 3, 4]])
    if not np.linalg.norm(np.cross(vertices[1] - vertices[0], vertices[2] - vertices[0])) > 0.1:
        return  # at least one face must have an area
    mesh = Mesh(vertices, faces)
    size = np.ptp(vertices, axis=0).max()
    assert np.abs(np.sqrt(Tree(mesh).closest(x).squared) - brute_force(mesh, x)).max() < 1e-8 * size


def test_winding_number() -> None:
    mesh = joined(box(), box(centre=(3, 0, 0)), Mesh(box(centre=(6, 0, 0)).vertices, box().faces[:, ::-1]))
    assert np.allclose(winding_number(mesh, [[0, 0, 0], [3, 0.4, 0], [6, 0, 0], [1.5, 0, 0], [0, 0, 99]]), [1, 1, -1, 0, 0], atol=1e-3)
    twice = joined(box(), box(size=(2, 2, 2)))
    assert np.allclose(winding_number(twice, [[0, 0, 0], [0.7, 0, 0]]), [2, 1], atol=1e-3)


def test_winding_number_of_an_open_mesh() -> None:
    """Half a ball's surface: the solid angle in closed form, along its axis."""
    mesh = ball(5)
    half = Mesh(mesh.vertices, mesh.faces[mesh.vertices[mesh.faces].mean(1)[:, 2] > 0])
    z = np.array([-1, -0.5, 0, 0.5])
    disc = (1 - np.abs(z) / np.sqrt(1 + z**2)) / 2  # share of all directions that the missing half's rim takes
    assert np.allclose(winding_number(half, np.column_stack((0 * z, 0 * z, z))), np.where(z > 0, 1 - disc, disc), atol=0.01)


def test_first_hits() -> None:
    scene = Scene(box(size=(2, 2, 2)))
    hits = scene.first_hits([[0, 0, 5], [0, 0, 5], [0.1, 0.2, 0], [5, 5, 5]], [[0, 0, -2], [0, 0, 1], [1, 0, 0], [1, 1, 1]])
    assert np.allclose(hits.distance, [4, np.inf, 0.9, np.inf], rtol=1e-6)
    assert (hits.face[[1, 3]] == -1).all()
    assert np.allclose(face_normals(box())[hits.face[[0, 2]]], [[0, 0, 1], [1, 0, 0]])
    assert scene.blocked([[0, 0, 5], [0, 0, 5]], [[0, 0, -2], [0, 0, 1]]).tolist() == [True, False]


def test_no_ray_leaves_a_closed_mesh() -> None:
    """Aimed at corners and edges, where rays slip through unless Embree is told to be careful."""
    mesh = ball(3)
    targets = np.concatenate((mesh.vertices, mesh.vertices[mesh.faces[:, :2]].mean(1)))
    assert Scene(mesh).blocked(0 * targets, targets).all()


def test_neighbours_agree() -> None:
    mesh = joined(ball(2), ball(2, centre=(5, 0, 0)))
    flipped = np.random.default_rng(0).random(len(mesh.faces)) < 0.3
    faces, patch = coherent(Mesh(mesh.vertices, np.where(flipped[:, None], mesh.faces[:, ::-1], mesh.faces)))
    assert np.array_equal(patch > 0, np.arange(len(faces)) >= len(faces) // 2)
    outwards = (face_normals(Mesh(mesh.vertices, faces)) * face_normals(mesh)).sum(1) > 0
    assert all(len(np.unique(outwards[patch == p])) == 1 for p in (0, 1))


def test_far_away() -> None:
    """Georeferenced: a ball of radius 0.5 a million units away, exact to the last digits that its coordinates have."""
    shift = np.array([1e6, -2e6, 3e6])
    mesh, x = ball(3), np.random.default_rng(0).uniform(-1, 1, (500, 3))
    there = Mesh(0.5 * mesh.vertices + shift, mesh.faces)
    assert np.abs(np.sqrt(Tree(there).closest(0.5 * x + shift).squared) - 0.5 * np.sqrt(Tree(mesh).closest(x).squared)).max() < 2e-9
    assert np.allclose(winding_number(there, 0.5 * x + shift), winding_number(mesh, x), atol=1e-3)
    assert Scene(there).first_hits([shift], [[0, 0, 1]]).distance[0] == pytest.approx(0.5, rel=1e-2)


@pytest.mark.parametrize("ask", [lambda m, x: Tree(m).closest(x), winding_number, lambda m, x: Scene(m).first_hits(x, x)])
def test_wrong_arrays_end_in_an_error_not_in_a_crash(ask) -> None:  # type: ignore[no-untyped-def]
    good, v, f = np.ones((2, 3)), FLAT.vertices, FLAT.faces
    nan = np.where(np.arange(9).reshape(3, 3) == 4, np.nan, v)
    for mesh in (Mesh(v, f[:, :2]), Mesh(v[:, :2], f), Mesh(v, f + 1), Mesh(v, f - 1), Mesh(v, f * 1.0), Mesh(nan, f), Mesh(v, f[:0]), Mesh(v, f[0]),
                 Mesh(v[:0], f), Mesh(0 * v, f), Mesh(v.astype(object), f)):  # fmt: skip
        with pytest.raises(InputError):
            ask(mesh, good)
    for x in (good[0], good[:, :2], good * np.nan, good * np.inf, good.astype(str)):
        with pytest.raises(InputError):
            ask(FLAT, x)


def test_any_memory_layout_is_good() -> None:
    mesh, x = ball(1), np.random.default_rng(0).normal(size=(50, 3))
    odd = Mesh(np.asfortranarray(mesh.vertices), np.asfortranarray(mesh.faces.astype(np.int32)))
    odd.vertices.flags.writeable = False
    assert np.array_equal(Tree(odd).closest(np.asfortranarray(x)).squared, Tree(mesh).closest(x).squared)
    assert np.array_equal(winding_number(odd, np.repeat(x, 2, 0)[::2]), winding_number(mesh, x))
    assert np.array_equal(Scene(odd).first_hits(x, x).face, Scene(mesh).first_hits(x, x).face)


def test_no_points() -> None:
    none = np.zeros((0, 3))
    assert Tree(FLAT).closest(none).point.shape == (0, 3) and winding_number(FLAT, none).shape == (0,)
    assert Scene(FLAT).first_hits(none, none).face.shape == (0,) and Scene(FLAT).blocked(none, none).shape == (0,)


@pytest.mark.parametrize("n", [0, 1, CHUNK, CHUNK + 1])
def test_every_point_is_in_one_chunk(n: int) -> None:
    parts = neighbours(np.random.default_rng(0).normal(size=(n, 3)))
    assert np.array_equal(np.sort(np.concatenate([np.zeros(0, np.int64), *parts])), np.arange(n)) and all(len(part) <= CHUNK for part in parts)
    assert all(part.size for part in neighbours(np.ones((n, 3))))


# -- marching cubes --------------------------------------------------------------------------------------------------------------------

CELL = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], np.float64)


def test_a_corner_cut_off() -> None:
    mesh = marching_cubes([-1, 3, 1, 3, 4, 5, 5, 5], CELL, [[0, 1, 2, 3, 4, 5, 6, 7]])
    assert np.allclose(sorted(mesh.vertices.tolist()), [[0, 0, 0.25], [0, 0.5, 0], [0.2, 0, 0]])
    assert len(mesh.faces) == 1 and (face_normals(mesh) > 0).all()  # away from the negative corner


def test_the_dense_and_the_sparse_algorithm_of_libigl_agree() -> None:
    """On noise, every case of their table: the same vertices, and both are closed."""
    n = 12
    place = np.stack(np.meshgrid(*[np.arange(n)] * 3, indexing="ij"), -1).reshape(-1, 3)
    values = np.where(((place > 0) & (place < n - 1)).all(1), np.random.default_rng(0).normal(size=n**3), 1.0)
    lowest = np.flatnonzero((place < n - 1).all(1))
    cells = lowest[:, None] + (CELL.astype(int) @ (n * n, n, 1))
    mesh = marching_cubes(values, place, cells)
    order = np.lexsort(place.T)  # that of libigl: x runs fastest
    vertices, faces, _ = igl.marching_cubes(values[order], place[order].astype(np.float64), n, n, n, 0.0)
    assert np.allclose(*(v[np.lexsort(v.round(9).T)] for v in (mesh.vertices, vertices)), atol=1e-12)
    assert is_watertight(mesh) and is_watertight(Mesh(vertices, faces)) and len(mesh.faces) > 1000


def test_no_cells() -> None:
    assert marching_cubes(np.ones(8), CELL, np.zeros((0, 8), int)).faces.shape == (0, 3)


def test_wrong_cells_end_in_an_error_not_in_a_crash() -> None:
    values, cells = np.linspace(-1, 1, 8), np.arange(8)[None]
    for wrong in ((values[:7], CELL, cells), (values[:, None], CELL, cells), (values * np.nan, CELL, cells), (values, CELL[:, :2], cells),
                  (values, CELL, cells[:, :7]), (values, CELL, cells[0]), (values, CELL, cells + 1), (values, CELL, cells - 1),
                  (values, CELL, cells * 1.0), (values, CELL + np.inf, cells)):  # fmt: skip
        with pytest.raises(InputError):
            marching_cubes(*wrong)
