"""Surfaces of fields: what the search finds is what the dense grid shows, asked at few points, each once; corners, borders and errors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from metasdf.errors import EmptySurfaceError, InputError, UsageError
from metasdf.fields import FieldSpec, field, initialise
from metasdf.geometry import isosurface
from metasdf.geometry.isosurface import Extraction, extract
from metasdf.geometry.mesh import Mesh, components, face_normals
from metasdf.geometry.shapes import Solid, box, capsule, cylinder, moved, sphere, torus, union

RING = torus(0.6, 0.25)
FAR = union(moved(sphere(0.06), translation=(-0.85, -0.85, -0.85)), moved(box((0.2, 0.3, 0.1)), translation=(0.5, 0.5, 0.5)))
PLATE = box((0.8, 0.014, 0.7))  # thinner than two cells at 101 points, much thinner than a coarse one


def network(spec: FieldSpec, *, seed: int = 0) -> Solid:
    """In float64: in float32 the same point has other last digits in other company."""
    params = initialise(spec, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return lambda x: field(params, torch.from_numpy(np.asarray(x)), spec)[:, 0].numpy()


def jumping(x: np.ndarray) -> np.ndarray:
    """As a head with a distance and a sign has it: the sign's surface is not where the distance is zero, and the value jumps there."""
    s = RING(x)
    return np.copysign(s + 0.02 * np.sin(5 * x[:, 0]), s)


def classifier(x: np.ndarray) -> np.ndarray:
    """No distance, but one beside it."""
    s = RING(x)
    return np.stack((np.tanh(30 * s), s), 1)


def aloof(x: np.ndarray) -> np.ndarray:
    """A distance that comes nowhere near zero: signs alone show the surface."""
    s = RING(x)
    return np.stack((s, np.abs(s) + 0.3), 1)


def volume(mesh: Mesh) -> float:
    a, b, c = (mesh.vertices[column] for column in mesh.faces.T)
    return float((a * np.cross(b, c)).sum() / 6)


def assert_same(one: Extraction, other: Extraction) -> None:
    assert np.array_equal(one.mesh.faces, other.mesh.faces) and np.allclose(one.mesh.vertices, other.mesh.vertices, rtol=0, atol=1e-9)
    assert (one.watertight, one.clipped) == (other.watertight, other.clipped)


# -- the surface -----------------------------------------------------------------------------------------------------------------------


def test_a_sphere_converges_with_the_square_of_the_cells() -> None:
    errors = []
    for resolution in (16, 31, 61):
        mesh = extract(sphere(0.7), resolution=resolution).mesh
        errors.append((np.abs(np.linalg.norm(mesh.vertices, axis=1) - 0.7).max(), abs(volume(mesh) - 4 / 3 * np.pi * 0.7**3)))
    orders = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    assert (orders > 1.7).all() and errors[-1][0] < 2e-4


def test_faces_point_outwards() -> None:
    mesh = extract(RING, resolution=48).mesh
    middle = mesh.vertices[mesh.faces].mean(1)
    step = 1e-3 * face_normals(mesh)
    assert (RING(middle + step) > RING(middle - step)).all()
    assert volume(mesh) == pytest.approx(2 * np.pi**2 * 0.6 * 0.25**2, rel=0.01)


@pytest.mark.parametrize("method", ["sparse", "dense"])
def test_corners_are_the_corners_of_the_cube(method: str) -> None:
    seen = []

    def asked(x: np.ndarray) -> np.ndarray:
        seen.append(x)
        return RING(x)

    extract(asked, resolution=100, method=method)  # type: ignore[arg-type]
    x = np.concatenate(seen)
    assert x.min() == -1 and x.max() == 1 and {(-1.0, -1.0, -1.0), (1.0, 1.0, 1.0), (-1.0, 1.0, 1.0)} <= set(map(tuple, x[np.abs(x).min(1) == 1]))
    steps = (x + 1) * 99 / 2
    assert np.abs(steps - steps.round()).max() < 1e-12
    assert len(np.unique(x, axis=0)) == len(x)  # no point twice


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_plane_stays_plane(axis: int) -> None:
    """On a sheared grid, as the reference code has it, it does not."""
    found = extract(lambda x: x[:, axis] - 0.3, resolution=70)
    assert np.abs(found.mesh.vertices[:, axis] - 0.3).max() < 1e-12 and found.clipped


def test_any_cube() -> None:
    found = extract(moved(sphere(2.0), translation=(10, 10, 10)), low=7.0, high=13.0, resolution=80)
    assert_same(found._replace(mesh=Mesh((found.mesh.vertices - 10) / 3, found.mesh.faces)), extract(sphere(2 / 3), resolution=80))


@pytest.mark.parametrize("resolution", [2, 3, 5, 46, 90, 91, 97])
def test_any_resolution(resolution: int) -> None:
    """Also where strides do not divide it: the surface is near the upper end, where cells are cut off."""
    sdf = moved(sphere(0.9), translation=(0.6, 0.7, 0.5))
    assert_same(extract(sdf, resolution=resolution), extract(sdf, resolution=resolution, method="dense"))


# -- the search ------------------------------------------------------------------------------------------------------------------------

FIELDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sphere": sphere(0.5), "torus": RING, "plate": PLATE, "two far apart": FAR, "leaves the cube": sphere(1.2), "distance and sign": jumping,
    "classifier": classifier, "aloof": aloof,
    "geometric": network(FieldSpec(in_dim=3, width=64, hidden_layers=1, init="geometric")),
    "spread": network(FieldSpec(in_dim=3, width=16, hidden_layers=2, init="spread")),
    "sine": network(FieldSpec(in_dim=3, width=16, hidden_layers=1, activation="sine", w0=10.0)),
}  # fmt: skip


@pytest.mark.parametrize("name", FIELDS)
def test_the_same_mesh_as_the_dense_grid(name: str) -> None:
    sparse, dense = (extract(FIELDS[name], resolution=101, method=method) for method in ("sparse", "dense"))  # type: ignore[arg-type]
    assert_same(sparse, dense)
    assert dense.evaluations == 101**3 and sparse.evaluations < 101**3 / (2.5 if name in ("spread", "sine") else 7)
    assert dense.watertight == (not dense.clipped) == (name not in ("leaves the cube", "spread", "sine"))


@st.composite
def solids(draw: st.DrawFn) -> Solid:
    size = st.floats(0.02, 0.35)
    parts = []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from((lambda r, s: sphere(r), lambda r, s: box((r, s, 0.1)), cylinder, capsule)))
        turn = np.linalg.qr(np.random.default_rng(draw(st.integers(0, 99))).normal(size=(3, 3)))[0]
        parts.append(moved(kind(draw(size), draw(size)), rotation=turn, translation=draw(st.tuples(*[st.floats(-0.9, 0.9)] * 3))))
    return union(*parts)


@settings(max_examples=12, deadline=None)
@given(solids())
def test_the_same_mesh_for_any_solids(sdf: Solid) -> None:
    try:
        dense = extract(sdf, resolution=92, method="dense")
    except EmptySurfaceError:
        with pytest.raises(EmptySurfaceError):
            extract(sdf, resolution=92)
        return
    assert_same(extract(sdf, resolution=92), dense)


@settings(max_examples=300, deadline=None)
@given(st.floats(0, 2), st.floats(0, 2), arrays(np.float64, (64, 3), elements=st.floats(0, 1)))
def test_a_cell_is_ruled_out_only_if_two_balls_cover_it(a: float, b: float, x: np.ndarray) -> None:
    left = (np.linalg.norm(x, axis=1) >= a) & (np.linalg.norm(1 - x, axis=1) >= b)
    assert isosurface._may_hold(np.array([a]), np.array([b]))[0] or not left.any()


def test_two_balls_that_do_not_cover_a_cell() -> None:
    """No more cells are kept than must be: seen on a grid of points, whose nearest is never further off than 0.05."""
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, 21)] * 3), -1).reshape(-1, 3)
    from_one, from_other = np.linalg.norm(grid, axis=1), np.linalg.norm(1 - grid, axis=1)
    a, b = np.random.default_rng(0).uniform(0, 1.8, (2, 300))
    near = [bool(((from_one >= p - 0.05) & (from_other >= q - 0.05)).any()) for p, q in zip(a, b, strict=True)]
    may = isosurface._may_hold(a, b)
    assert (may <= near).all() and 50 < may.sum() < 250


def test_a_twentieth_of_the_dense_grid() -> None:
    found = extract(sphere(0.5), resolution=256)
    assert found.evaluations < 256**3 / 50 and found.watertight and not found.notes
    assert extract(RING, resolution=256).evaluations < 256**3 / 20


def test_what_hangs_together_is_found_where_distances_hide_it() -> None:
    """A ring thinner than a coarse cell, in a field that claims to be far from it over half of the cube."""
    thin = torus(0.6, 0.02)

    def lying(x: np.ndarray) -> np.ndarray:
        return np.stack((thin(x), np.where(x[:, 0] > 0.3, 0.5, thin(x))), 1)

    found = extract(lying, resolution=128)
    assert_same(found, extract(thin, resolution=128, method="dense"))
    assert len(found.notes) == 1 and "method='dense'" in found.notes[0]
    assert components(found.mesh).max() == 0


def test_bounds_rise_where_the_field_is_steeper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ripples that eight cells a side do not show: a tenth of the surface is missed by whom differences on that grid are enough."""
    monkeypatch.setattr(isosurface, "COARSE", 8)

    def rippled(x: np.ndarray) -> np.ndarray:
        return sphere(0.5)(x) + 0.15 * np.sin(40 * x).prod(1)

    assert_same(extract(rippled, resolution=64), extract(rippled, resolution=64, method="dense"))


# -- closed --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resolution", [33, 65, 97])
def test_a_surface_through_grid_points_is_closed(resolution: int) -> None:
    """Values of exactly zero: the faces around such a corner must not lose their area, or the mesh its borders."""
    sdf = union(box(0.5), moved(box(0.25), translation=(0.5, 0.5, 0.5)), moved(box(0.125), translation=(-0.75, 0, 0)))
    found = extract(sdf, resolution=resolution)
    assert found.watertight and not found.clipped and np.linalg.norm(face_normals(found.mesh), axis=1).min() > 0
    assert volume(found.mesh) == pytest.approx(1 + 0.125 * 7 / 8 + 0.25**3, abs=48 / resolution**2)  # corners are cut


@pytest.mark.parametrize("seed", range(5))
def test_noise_is_closed(seed: int) -> None:
    """Every case of the table, next to every other."""
    values = np.random.default_rng(seed).normal(size=(16, 16, 16))
    for axis in range(3):
        np.moveaxis(values, axis, 0)[[0, -1]] = 1
    place = lambda x: tuple(np.rint((x.T + 1) * 7.5).astype(int))  # noqa: E731
    found = extract(lambda x: values[place(x)], resolution=16)
    assert found.watertight and not found.clipped


def test_a_surface_that_leaves_the_cube() -> None:
    found = extract(moved(sphere(0.5), translation=(0.8, 0, 0)), resolution=64)
    assert found.clipped and not found.watertight
    edges = np.sort(found.mesh.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), 1)
    border, count = np.unique(edges, axis=0, return_counts=True)
    assert (found.mesh.vertices[border[count == 1], 0] == 1).all() and set(count) == {1, 2}


# -- what can go wrong -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["sparse", "dense"])
@pytest.mark.parametrize("sdf", [moved(sphere(0.5), translation=(3, 0, 0)), sphere(9.0), lambda x: np.full(len(x), 0.5), lambda x: np.zeros(len(x))])
def test_no_surface(sdf: Solid, method: str) -> None:
    with pytest.raises(EmptySurfaceError, match="no surface") as caught:
        extract(sdf, resolution=64, method=method)  # type: ignore[arg-type]
    assert ("method='dense'" in caught.value.fix) == (method == "sparse")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite(bad: float) -> None:
    with pytest.raises(InputError, match="not finite"):
        extract(lambda x: np.where(np.abs(x - 0.5).max(1) < 0.1, bad, RING(x)), resolution=64)


@pytest.mark.parametrize("shape", [(), (3,), (1, 2, 2)])
def test_values_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="a value for each point"):
        extract(lambda x: np.ones((len(x) + 1,) if shape == () else (len(x), *shape)), resolution=8)


@pytest.mark.parametrize("wrong", [{"resolution": 1}, {"low": 1.0}, {"high": np.inf}, {"chunk": 0}, {"method": "octree"}])
def test_wrong_requests(wrong: dict) -> None:
    with pytest.raises(UsageError):
        extract(RING, **wrong)


@pytest.mark.parametrize("method", ["sparse", "dense"])
@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory."), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_out_of_memory(error: Exception, method: str) -> None:
    sizes = []

    def small(x: np.ndarray) -> np.ndarray:
        sizes.append(len(x))
        if len(x) > 1000:
            raise error
        return RING(x)

    found = extract(small, resolution=50, method=method, chunk=3000)  # type: ignore[arg-type]
    assert_same(found, extract(RING, resolution=50))
    assert "out of memory" in found.notes[0] and max(sizes) <= 3000 and found.evaluations == sum(n for n in sizes if n <= 1000)


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), MemoryError()])
def test_errors_of_the_function_come_through(error: Exception) -> None:
    def fails(x: np.ndarray) -> np.ndarray:
        raise error

    with pytest.raises(type(error)):
        extract(fails)
