"""Pictures of meshes: coverage, depth and light against what they must be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metasdf.errors import InputError, UsageError
from metasdf.geometry.mesh import Mesh
from metasdf.geometry.render import MARGIN, _rasterise, contact_sheet, render

Array = np.ndarray
CUBE = Mesh(
    np.array([(x, y, z) for x in (-1.0, 1) for y in (-1.0, 1) for z in (-1.0, 1)]),
    np.array([(0, 1, 3), (0, 3, 2), (4, 6, 7), (4, 7, 5), (0, 4, 5), (0, 5, 1), (2, 3, 7), (2, 7, 6), (0, 2, 6), (0, 6, 4), (1, 5, 7), (1, 7, 3)]),
)
EMPTY = Mesh(np.zeros((0, 3)), np.zeros((0, 3), np.int64))


def sphere(n: int = 24) -> Mesh:
    """Rings of latitude, the poles as rings without size: faces without area must not matter."""
    t, p = np.meshgrid(np.linspace(0, np.pi, n), np.arange(2 * n) * np.pi / n, indexing="ij")
    vertices = np.stack((np.sin(t) * np.cos(p), np.cos(t), np.sin(t) * np.sin(p)), -1).reshape(-1, 3)
    i, j = np.meshgrid(np.arange(n - 1), np.arange(2 * n), indexing="ij")
    a, b = i * 2 * n + j, i * 2 * n + (j + 1) % (2 * n)
    return Mesh(vertices, np.concatenate([np.stack(f, -1).reshape(-1, 3) for f in ((a, b, b + 2 * n), (a, b + 2 * n, a + 2 * n))]))


def covered(picture: Array) -> Array:
    return (picture != 255).any(-1)


def test_silhouette_of_a_sphere() -> None:
    size = 200
    for perspective in (0.0, 30.0):
        picture = render(sphere(), size=size, perspective=perspective, supersample=1)
        assert picture.shape == (size, size, 3) and picture.dtype == np.uint8
        radius = size * (0.5 - MARGIN)
        assert covered(picture).sum() == pytest.approx(np.pi * radius**2, rel=0.01)
        y, x = np.nonzero(covered(picture))
        assert np.hypot(x + 0.5 - size / 2, y + 0.5 - size / 2).max() < radius + 0.5


def test_light_on_a_sphere() -> None:
    """From the upper left; smooth, and the same on the left and right of the light's plane only roughly."""
    picture = render(sphere(), size=200, perspective=0, supersample=1).astype(float).sum(-1)
    assert picture[50, 60] > picture[100, 100] > picture[150, 150] > 60
    row = picture[100, 20:180]
    assert np.abs(np.diff(row)).max() < 40
    flat = render(sphere(8), size=200, perspective=0, crease=0, supersample=1)
    smooth = render(sphere(8), size=200, perspective=0, crease=80, supersample=1)
    steps = [np.abs(np.diff(p[90:110, 40:160].astype(float).sum(-1), axis=1)) for p in (flat, smooth)]
    assert steps[0].max() > 2 * steps[1].max()


def test_a_cube_from_the_front() -> None:
    """Parallel rays along z see a square of one colour, with the margin around it."""
    picture = render(CUBE, size=100, azimuth=0, elevation=0, perspective=0, supersample=1)
    inside = covered(picture)
    assert inside[4:96, 4:96].all() and inside.sum() == 92**2
    assert np.ptp(picture[10:90, 10:90].reshape(-1, 3).astype(int), axis=0).max() <= 6  # the shadow maps are no finer


def wedge() -> Mesh:
    """High at -x, low at +x, deep at -z: unlike from each side."""
    corners = np.array([(-1, 0, -1), (1, 0, -1), (1, 0, 1), (-1, 0, 1), (-1, 1.5, -1), (-1, 0.5, 1)], float)
    return Mesh(corners, np.array([(0, 1, 2), (0, 2, 3), (0, 4, 1), (3, 2, 5), (0, 3, 5), (0, 5, 4), (1, 4, 5), (1, 5, 2)]))


def test_azimuth() -> None:
    front, behind = (covered(render(wedge(), size=80, azimuth=a, elevation=0, perspective=0)) for a in (0, 180))
    columns = front.sum(0)
    assert columns[:40].sum() > 1.5 * columns[40:].sum() and np.abs(front[:, ::-1].astype(int) - behind).mean() < 0.01
    side = covered(render(wedge(), size=80, azimuth=90, elevation=0, perspective=0)).sum(0)  # from +x, +z is on the left
    assert side[10:30].sum() < side[50:70].sum()


def test_elevation() -> None:
    """From above the wedge is the square that it stands on; from the side it is lower than wide."""
    above, level = (covered(render(wedge(), size=60, azimuth=0, elevation=e, perspective=0)) for e in (90, 0))
    assert above.sum() > 0.98 * (60 * (1 - 2 * MARGIN)) ** 2 > 1.4 * level.sum()


def test_up() -> None:
    """The same picture of the same mesh with its axes renamed."""
    y_up = wedge()
    z_up = Mesh(y_up.vertices[:, [0, 2, 1]] * (1, -1, 1), y_up.faces)
    assert np.array_equal(render(y_up, size=60), render(z_up, size=60, up="z"))


def test_both_sides_are_lit_alike() -> None:
    mesh = wedge()
    assert np.array_equal(render(mesh, size=60), render(Mesh(mesh.vertices, mesh.faces[:, ::-1]), size=60))


def test_the_same_bytes_each_time() -> None:
    assert np.array_equal(render(sphere(12), size=64), render(sphere(12), size=64))


def test_where_and_how_large_the_mesh_is_does_not_matter() -> None:
    mesh = sphere(12)
    for scale, shift in ((1e-9, 0.0), (1e12, 0.0), (1.0, 1e6)):
        moved = render(Mesh(mesh.vertices * scale + shift, mesh.faces), size=64, supersample=1)
        assert np.abs(moved.astype(int) - render(mesh, size=64, supersample=1)).mean() < 0.5


def test_vertices_without_faces_do_not_matter() -> None:
    mesh = Mesh(np.concatenate((CUBE.vertices, [(np.nan, 0, 0), (1e9, 0, 0)])), CUBE.faces)
    assert np.array_equal(render(mesh, size=50), render(CUBE, size=50))


def test_empty_and_flat_meshes() -> None:
    assert (render(EMPTY, size=(30, 20)) == 255).all() and render(EMPTY, size=(30, 20)).shape == (20, 30, 3)
    assert (render(EMPTY, size=8, background=(0, 0, 0)) == 0).all()
    point = Mesh(np.ones((3, 3)), np.array([(0, 1, 2)]))
    line = Mesh(np.array([(0.0, 0, 0), (1, 0, 0), (2, 0, 0)]), np.array([(0, 1, 2), (0, 0, 0)]))
    assert render(point, size=20).shape == render(line, size=20).shape == (20, 20, 3)


def test_a_shadow_falls() -> None:
    """A plate over a floor darkens it below."""
    floor = np.array([(-2.0, 0, -2), (2, 0, -2), (2, 0, 2), (-2, 0, 2)])
    plate, faces = floor * 0.3 + (0, 0.6, 0), np.array([(0, 1, 2), (0, 2, 3)])
    low = render(Mesh(floor, faces), size=100, azimuth=0, elevation=30, perspective=0)
    both = render(Mesh(np.concatenate((floor, plate)), np.concatenate((faces, faces + 4))), size=100, azimuth=0, elevation=30, perspective=0)
    assert low.astype(int).sum(-1).min() > 3 * 150 and both.astype(int).sum(-1).min() < low.astype(int).sum(-1).min() - 60


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_rasteriser_against_every_triangle_at_every_sample(seed: int) -> None:
    rng, width, height = np.random.default_rng(seed), 17, 13
    corners = rng.uniform(-6, 20, (25, 3, 3))
    seen, depth = _rasterise(corners, width, height)
    y, x = np.divmod(np.arange(width * height), width)
    p = np.stack((x + 0.5, y + 0.5), -1)[:, None]
    edge = [corners[:, (k + 1) % 3, :2] - corners[:, k, :2] for k in range(3)]
    side = np.stack([edge[k][:, 0] * (p[..., 1] - corners[:, k, 1]) - edge[k][:, 1] * (p[..., 0] - corners[:, k, 0]) for k in range(3)])
    twice = edge[0][:, 0] * edge[1][:, 1] - edge[0][:, 1] * edge[1][:, 0]
    weight = np.roll(side / twice, -1, 0)  # of the corner opposite the edge
    z = np.where((weight > 0).all(0), np.einsum("kpf,fk->pf", weight, corners[:, :, 2]), np.inf)
    assert np.array_equal(seen, np.where(np.isinf(z).all(1), -1, z.argmin(1)))
    assert np.allclose(depth, z.min(1), rtol=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_any_mesh_is_drawn(seed: int) -> None:
    """Random triangles over few places: doubled, crossing, without area."""
    rng = np.random.default_rng(seed)
    vertices = rng.integers(-2, 3, (rng.integers(1, 12), 3)) * 10.0 ** rng.integers(-8, 8)
    mesh = Mesh(vertices, rng.integers(0, len(vertices), (rng.integers(1, 40), 3)))
    with np.errstate(all="raise", under="ignore"):
        assert render(mesh, size=24, perspective=float(rng.choice((0, 40))), crease=float(rng.choice((0, 60))), supersample=2).shape == (24, 24, 3)


@pytest.mark.parametrize(
    "setting", [{"size": 0}, {"size": (9, 10_000_000)}, {"up": "x"}, {"perspective": -1.0}, {"perspective": 170.0}, {"supersample": 0}]
)
def test_settings_without_meaning(setting: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        render(CUBE, **setting)  # type: ignore[arg-type]


@pytest.mark.parametrize("mesh", [
    CUBE._replace(faces=CUBE.faces + 1), CUBE._replace(faces=CUBE.faces - 1), CUBE._replace(faces=CUBE.faces[:, :2]),
    CUBE._replace(vertices=CUBE.vertices * np.nan), CUBE._replace(vertices=CUBE.vertices[:, :2]),
])  # fmt: skip
def test_meshes_that_cannot_be_drawn(mesh: Mesh) -> None:
    with pytest.raises(InputError):
        render(mesh)


def test_titles_in_other_scripts() -> None:
    """The font has few glyphs: names that differ look different, and none of them ends the work."""
    picture = np.zeros((10, 300, 3), np.uint8)

    def title(text: str) -> bytes:
        return contact_sheet([picture], [text]).tobytes()

    assert title("Stühle") == title("Stuhle") and title("a\xa0b") == title("a b")
    assert title("椅子") == title(r"\u6905\u5b50") != title("桌子")
    assert title("a\nb") == title(r"a\nb") and title("a\udcff") == title(r"a\udcff")
    assert title("a · 99.0%…") != title(r"a \xb7 99.0%…")  # these it has


def test_contact_sheet() -> None:
    pictures = [np.full((20, 30, 3), i * 40, np.uint8) for i in range(5)]
    sheet = contact_sheet(pictures, columns=2, gap=4)
    assert sheet.shape == (3 * 24 + 4, 2 * 34 + 4, 3) and (sheet[4:24, 4:34] == 0).all() and (sheet[4 + 24 : 24 + 24, 38:68] == 120).all()
    assert (sheet[-20:, 38:] == 255).all()  # no sixth picture
    titled = contact_sheet(pictures, ["a", "", "a title too long for its cell", "b", "c"], columns=3)
    assert titled.shape[0] > 2 * 26 + 6 and (titled[26:40, 6:36] < 200).any()
    assert contact_sheet(pictures[:1], columns=9).shape == (32, 42, 3)


ONE = [np.zeros((4, 4, 3), np.uint8)]


@pytest.mark.parametrize(("images", "titles", "columns"), [([], None, 3), (ONE, ["a", "b"], 3), (ONE, None, 0)])
def test_contact_sheets_without_meaning(images: list[Array], titles: list[str] | None, columns: int) -> None:
    with pytest.raises(UsageError):
        contact_sheet(images, titles, columns=columns)
