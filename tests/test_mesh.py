"""Meshes as arrays: closed forms on boxes, slow twins, and what an unsound mesh is refused for."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.transform import Rotation

from metasdf.errors import InputError
from metasdf.geometry.mesh import (
    Mesh,
    areas,
    bounds,
    check,
    clean,
    components,
    concatenate,
    face_normals,
    is_watertight,
    prune,
    transform,
    weld,
)


def box(low: tuple[float, float, float] = (0, 0, 0), size: tuple[float, float, float] = (1, 1, 1)) -> Mesh:
    """Twelve triangles, outward."""
    vertices = np.array(list(itertools.product((0.0, 1.0), repeat=3)))
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = np.array([(q[0], q[i], q[i + 1]) for q in quads for i in (1, 2)])
    return Mesh(vertices * size + low, faces)


def soup(mesh: Mesh) -> Mesh:
    """Each face with corners of its own, as in STL."""
    return Mesh(mesh.vertices[mesh.faces].reshape(-1, 3), np.arange(3 * len(mesh.faces)).reshape(-1, 3))


def volume(mesh: Mesh) -> float:
    a, b, c = (mesh.vertices[column] for column in mesh.faces.T)
    return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)


def small_meshes() -> st.SearchStrategy[Mesh]:
    """Few places, so that corners coincide, and faces of every kind of badness."""
    vertices = arrays(np.float64, (12, 3), elements=st.sampled_from([-1.0, -0.0, 0.0, 1.0]))
    faces = st.integers(1, 30).flatmap(lambda n: arrays(np.int64, (n, 3), elements=st.integers(0, 11)))
    return st.builds(Mesh, vertices, faces)


def test_a_box() -> None:
    mesh = box((1, 2, 3), (2, 3, 4))
    assert areas(mesh).sum() == pytest.approx(2 * (6 + 8 + 12), rel=1e-14) and volume(mesh) == pytest.approx(24, rel=1e-14)
    assert bounds(mesh).tolist() == [[1, 2, 3], [3, 5, 7]]
    assert is_watertight(mesh) and set(components(mesh)) == {0}
    normals = face_normals(mesh)
    assert np.array_equal(np.abs(normals).sum(1), np.ones(12)) and np.array_equal(normals.sum(0), np.zeros(3))
    centres = mesh.vertices[mesh.faces].mean(1) - (2, 3.5, 5)
    assert (np.einsum("ij,ij->i", centres, normals) > 0).all()


def test_what_the_corners_share_is_found_again() -> None:
    apart = soup(box())
    assert len(apart.vertices) == 36 and is_watertight(apart) and set(components(apart)) == {0}
    together = weld(apart)
    assert len(together.vertices) == 8 and np.array_equal(together.vertices[together.faces], apart.vertices[apart.faces])


def test_minus_zero_is_zero() -> None:
    vertices = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [-0.0, -0.0, 0], [1, -0.0, 0], [0, 0, 1]])
    assert len(weld(Mesh(vertices, np.array([[0, 1, 2], [3, 4, 5]]))).vertices) == 4


def test_a_hole_is_seen() -> None:
    mesh = box()
    assert not is_watertight(Mesh(mesh.vertices, mesh.faces[1:]))
    assert not is_watertight(concatenate([mesh, mesh]))  # each edge in four faces
    assert not is_watertight(Mesh(mesh.vertices, np.zeros((0, 3), np.int64)))


def test_components_are_numbered() -> None:
    mesh = concatenate([box((3.0 * k, 0, 0)) for k in range(5)])
    assert np.array_equal(np.bincount(components(mesh)), [12] * 5)
    touching = concatenate([box(), box((1, 1, 1))])  # they share one corner
    assert set(components(touching)) == {0}


def test_cleaning_a_box_that_has_every_defect() -> None:
    mesh = box()
    extra = np.array([[0, 0, 1], [2, 2, 2], [0, 1, 9], [1, 0, 3], [0, 3, 1]])  # repeated, point, flat, two coincident turned around
    vertices = np.vstack((mesh.vertices, [5.0, 5, 5], [0, 0, 0.5]))  # one unused, one on an edge
    dirty = Mesh(vertices, np.vstack((extra, mesh.faces)))
    assert {tuple(sorted(f)) for f in extra[3:].tolist()} <= {tuple(sorted(f)) for f in mesh.faces.tolist()}
    tidy = clean(dirty)
    assert len(tidy.faces) == 12 and len(tidy.vertices) == 8 and is_watertight(tidy)
    assert len(clean(dirty, coincident=False).faces) == 14
    assert len(clean(Mesh(vertices, extra[:3])).faces) == 0


def test_thin_is_not_flat() -> None:
    """A needle far from the origin, as float32 files have them, is kept; the same on a line is not."""
    needle = np.array([[1e4, 0, 0], [1e4 + 1, 0, 0], [1e4 + 0.5, 1e-9, 0]])
    assert len(clean(Mesh(needle, np.array([[0, 1, 2]]))).faces) == 1
    assert len(clean(Mesh(needle * (1, 0, 1), np.array([[0, 1, 2]]))).faces) == 0
    tiny = Mesh(box().vertices * 1e-200, box().faces)  # squares of areas underflow
    assert len(clean(tiny).faces) == 12 and np.array_equal(face_normals(tiny), face_normals(box()))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3), st.floats(-1e3, 1e3))
def test_rigid_motion_and_scale(seed: int, scale: float, shift: float) -> None:
    mesh = box((0, 0, 0), (1, 2, 3))
    matrix = np.eye(4)
    rotation = Rotation.random(random_state=seed).as_matrix()
    matrix[:3, :3], matrix[:3, 3] = scale * rotation, shift
    moved = transform(mesh, matrix)
    rounding = 1e-12 * (1 + abs(shift) / scale)
    assert np.allclose(areas(moved), areas(mesh) * scale**2, rtol=10 * rounding)
    assert np.allclose(face_normals(moved), face_normals(mesh) @ rotation.T, atol=10 * rounding)
    assert is_watertight(moved)


def test_a_reflection_keeps_the_outside() -> None:
    assert volume(transform(box(), np.diag([-2.0, 1, 1, 1]))) == pytest.approx(2)


@settings(max_examples=60, deadline=None)
@given(small_meshes())
def test_twins(mesh: Mesh) -> None:
    welded = weld(mesh)
    assert len(np.unique(welded.vertices, axis=0)) == len(welded.vertices)
    assert np.array_equal(welded.vertices[welded.faces], mesh.vertices[mesh.faces])
    edges: dict[tuple[int, int], int] = {}
    group = list(range(len(welded.vertices)))
    for face in welded.faces.tolist():
        low = {group[v] for v in face}
        group = [min(low) if g in low else g for g in group]
        if len(set(face)) == 3:
            for pair in itertools.combinations(sorted(face), 2):
                edges[pair] = edges.get(pair, 0) + 1
    assert is_watertight(mesh) == (bool(edges) and set(edges.values()) == {2})
    labels = components(mesh)
    slow = [group[face[0]] for face in welded.faces.tolist()]
    assert len(set(zip(labels.tolist(), slow, strict=True))) == len(set(slow)) == len(set(labels))
    assert set(labels) == set(range(len(set(labels))))


@settings(max_examples=60, deadline=None)
@given(small_meshes(), st.booleans())
def test_cleaning_keeps_exactly_the_surface(mesh: Mesh, coincident: bool) -> None:
    tidy = clean(mesh, coincident=coincident)
    corners = [tuple(sorted(map(tuple, (face + 0.0).tolist()))) for face in mesh.vertices[mesh.faces]]
    real = [c for c, area in zip(corners, areas(mesh), strict=True) if area > 1e-9]
    found = [tuple(sorted(map(tuple, (face + 0.0).tolist()))) for face in tidy.vertices[tidy.faces]]
    assert sorted(found) == sorted(set(real) if coincident else real)
    again = clean(tidy, coincident=coincident)
    assert np.array_equal(again.faces, tidy.faces) and np.array_equal(again.vertices, tidy.vertices)


def test_nothing_together_is_nothing() -> None:
    assert len(concatenate([]).faces) == 0


def test_pruning_keeps_the_order() -> None:
    mesh = prune(Mesh(np.arange(15.0).reshape(5, 3), np.array([[4, 2, 1]])))
    assert mesh.vertices[:, 0].tolist() == [3, 6, 12] and mesh.faces.tolist() == [[2, 1, 0]]


def test_a_sound_mesh_passes_as_float64() -> None:
    mesh = check(Mesh(box().vertices.astype(np.float32), box().faces.astype(np.int32)))  # type: ignore[arg-type]
    assert mesh.vertices.dtype == np.float64 and mesh.faces.dtype == np.int64


GOOD = box()


@pytest.mark.parametrize(
    ("vertices", "faces", "says"),
    [
        (GOOD.vertices[:, :2], GOOD.faces, "three columns"),
        (GOOD.vertices.astype(str), GOOD.faces, "array of numbers"),
        (GOOD.vertices, GOOD.faces[:, :2], "three columns"),
        (GOOD.vertices, GOOD.faces.astype(np.float64), "three columns"),
        (GOOD.vertices, GOOD.faces[:0], "no faces"),
        (GOOD.vertices, GOOD.faces - 1, "names vertex -1"),
        (GOOD.vertices, GOOD.faces + 1, "names vertex 8, but there are 8"),
        (np.where(GOOD.vertices == 1, np.nan, GOOD.vertices), GOOD.faces, "7 of 8 vertices are not finite"),
        (np.where(GOOD.vertices == 1, np.inf, GOOD.vertices), GOOD.faces, "not finite"),
        (GOOD.vertices * 1e200, GOOD.faces, "beyond 1e"),
        (GOOD.vertices * (1, 0, 0), GOOD.faces, "no surface"),
        (GOOD.vertices * 0, GOOD.faces, "no surface"),
    ],
)
def test_what_is_refused(vertices: np.ndarray, faces: np.ndarray, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        check(Mesh(vertices, faces), where="here")
    assert caught.value.where == "here"
