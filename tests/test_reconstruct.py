"""Files to SDFs: reading and refusing inputs, coordinates of all that is written, and that nothing of the user's is overwritten.

The prior here is a field that starts as the exact SDF of a diamond and hardly moves: results are known in closed form, nothing is trained.
"""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from metasdf.conditioning.inner_loop import InnerLoopConfig
from metasdf.conditioning.metasdf import MetaSDF
from metasdf.errors import InputError, UsageError
from metasdf.experiments import Experiment, TrainConfig
from metasdf.fields import FieldSpec
from metasdf.geometry.image import contour_points, mask_from_image, read_silhouette, sdf_from_mask
from metasdf.inputs import free_name
from metasdf.prior import Prior
from metasdf.reconstruct import FORMAT, OUTPUTS, context_for, crop_around, looks_signed, read_observations, reconstruct, reconstruct_many

SVG = "{http://www.w3.org/2000/svg}"
HALF = 20 / 56  # half the extent of the frame: the diamond fills it as a digit would
ROOT = 2**-0.5


def diamond_prior(rule: Any = "levelset", *, half: float = HALF, rate: float = 1e-9) -> Prior:
    """A prior whose initialisation is (|x| + |y| - half) / sqrt(2)."""
    spec = FieldSpec(width=4, hidden_layers=0)
    inner = InnerLoopConfig(steps=2, init_rate=rate)
    model = MetaSDF(spec, inner)
    weights = ([[1.0, 0], [-1, 0], [0, 1], [0, -1]], [0.0] * 4, [[ROOT] * 4], [-half * ROOT])
    with torch.no_grad():
        for parameter, value in zip(model._theta, weights, strict=True):
            parameter.copy_(torch.tensor(value))
    experiment = Experiment(name=f"test-{rule}", preset="test", context=rule, n_context=256, n_query=64, n_test=256, field=spec, inner=inner,
                            train=TrainConfig())  # fmt: skip
    return Prior(experiment, model)


def diamond(n: int = 400, *, centre: tuple[float, float] = (0.0, 0.0), half: float = 1.0) -> np.ndarray:
    """Points (n, 2) of the outline |x| + |y| = half, corners among them."""
    t = np.arange(n) / n * 4
    corner = np.array([[1.0, 0], [0, 1], [-1, 0], [0, -1], [1, 0]])
    k = t.astype(int)
    w = (t - k)[:, None]
    return ((1 - w) * corner[k] + w * corner[k + 1]) * half + np.asarray(centre)


def distance(x: np.ndarray, *, centre: tuple[float, float] = (0.0, 0.0), half: float = 1.0) -> np.ndarray:
    """The field of `diamond_prior`: a distance to the lines through the edges."""
    return (np.abs(x - np.asarray(centre)).sum(-1) - half) * ROOT


def euclidean(x: np.ndarray, *, centre: tuple[float, float], half: float) -> np.ndarray:
    """The true signed distance, which is larger than `distance` beyond the corners."""
    a, b = np.abs(x - np.asarray(centre)).T
    t = np.clip((a - b + half) / (2 * half), 0, 1)
    return np.hypot(a - t * half, b - (1 - t) * half) * np.where(a + b < half, -1, 1)


def write_csv(path: Path, rows: np.ndarray, header: str = "") -> Path:
    path.write_text((header + "\n" if header else "") + "\n".join(",".join(repr(float(v)) for v in row) for row in rows) + "\n")
    return path


def draw_diamond(path: Path, *, size: tuple[int, int] = (400, 300), centre: tuple[float, float] = (250, 120), half: float = 80) -> Path:
    """A bright diamond on black; pixel centres inside it are foreground."""
    j, i = np.meshgrid(np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5)
    inside = np.abs(j - centre[0]) + np.abs(i - centre[1]) < half
    Image.fromarray(inside.astype(np.uint8) * 255).save(path)
    return path


def svg_points(path: Path) -> tuple[ET.Element, list[np.ndarray]]:
    """The root, and the closed lines in the user's units: a path's numbers, moved by its group if it says so."""
    root = ET.parse(path).getroot()
    moved = re.search(r"translate\((\S+) (\S+)\)", next(root.iter(f"{SVG}g")).attrib.get("transform", ""))
    origin = np.array([float(v) for v in moved.groups()]) if moved else np.zeros(2)
    d = next(root.iter(f"{SVG}path")).attrib["d"]
    closed = [part for part in d.split("M") if part.strip()]
    assert all(part.strip().endswith("Z") for part in closed)
    pairs = [re.findall(r"(-?[\d.]+),(-?[\d.]+)", part) for part in closed]
    return root, [np.array([[float(v) for v in pair] for pair in line]) + origin for line in pairs]


# -- reading ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("a.csv", "0,0\n1,0\n0,1\n", "points"),
        ("a.csv", "x,y\n0,0\n1,0\n0,1\n", "points"),
        ("a.csv", "\ufeffX, Y, SDF\r\n0,0,-1\r\n1,0,0\r\n0,1,0.5\r\n", "samples"),
        ("a.txt", "# made by hand\n0 0 -0.5\n\n1 0 0.5\n0 1 0.5  \n", "samples"),
        ("a.xyz", "# x y s\n0\t0\t-0.5\n1\t0\t0.5\n0\t1\t0.5\n", "samples"),
        ("a.csv", '"x";"y"\n0;0\n1;0\n0;1\n', "points"),
    ],
)
def test_text(tmp_path: Path, name: str, text: str, kind: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    observed = read_observations(tmp_path / name)
    assert observed.kind == kind and observed.x is not None
    assert observed.x.tolist() == [[0, 0], [1, 0], [0, 1]]
    assert (observed.s is not None) == (kind == "samples")


def test_a_header_orders_the_columns(tmp_path: Path) -> None:
    observed = read_observations(write_csv(tmp_path / "a.csv", np.array([[-0.5, 1, 2], [0.5, 3, 4], [0.25, 5, 6]]), "distance,x,y"))
    assert observed.x is not None and observed.s is not None
    assert observed.x.tolist() == [[1, 2], [3, 4], [5, 6]] and observed.s.tolist() == [-0.5, 0.5, 0.25]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
def test_npy(tmp_path: Path, dtype: Any) -> None:
    np.save(tmp_path / "a.npy", np.asfortranarray((10 * diamond(40)).astype(dtype)))
    observed = read_observations(tmp_path / "a.npy")
    assert observed.kind == "points" and observed.x is not None and observed.x.dtype == np.float64 and observed.x.shape == (40, 2)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "", "no points"),
        ("a.csv", "x,y\n", "nothing but a header"),
        ("a.csv", "x,y,z\n0,0,0\n", "3D points for a 2D prior"),
        ("a.csv", "lon,lat\n0,0\n", "lon, lat are not known"),
        ("a.csv", "x,y,s,sdf\n0,0,0,0\n", "are not known"),
        ("a.csv", "0,0\n1,0\n0,oops\n", "line 3"),
        ("a.csv", "x,y\n0,0\n1,0,2\n", "line 3"),
        ("a.csv", "0,0\n1,\n0,1\n", "line 2"),
        ("a.csv", "0,0\n1,nan\n0,1\n", "line 2"),
        ("a.csv", "0,0\n1,inf\n0,1\n", "NaN or infinity"),
        ("a.csv", "0,5;1,5\n0,1;2,1\n", "decimal commas"),
        ("a.csv", "1\n2\n3\n", "1 columns"),
        ("a.csv", "0,0\n1,1\n", "2 points cannot show a shape"),
        ("a.csv", "0,0,0\n1,0,0\n0,1,0\n", "every distance is zero"),
        ("a.ply", "ply\n", ".ply cannot be read"),
    ],
)
def test_bad_text(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=re.escape(says)) as caught:
        read_observations(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_binary_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\x93NUMPY\xff\xfe\x00")
    with pytest.raises(InputError, match="no text"):
        read_observations(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((2, 50)), "transposed"),
        (np.zeros((3, 50)), "transposed"),
        (np.zeros((64, 64)), "an image saved as an array"),
        (np.zeros((50, 4)), "(50, 4)"),
        (np.zeros(50), "(50,)"),
        (np.zeros((0, 2)), "empty"),
        (np.zeros((50, 2), complex), "complex128"),
        (np.zeros((50, 2), bool), "bool"),
        (np.array([[0, 0], [1, np.nan], [0, 1], [np.inf, 0]]), "2 of 4 rows hold NaN or infinity, the first is row 1"),
        (np.zeros((50, 3)), "every distance is zero"),
    ],
)
def test_bad_npy(tmp_path: Path, array: np.ndarray, says: str) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(InputError, match=re.escape(says)) as caught:
        read_observations(tmp_path / "a.npy")
    assert str(tmp_path / "a.npy") in str(caught.value)


def test_npy_is_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[{}, 1], [2, 3]], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="cannot be read"):
        read_observations(tmp_path / "a.npy")


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"not an array"])
def test_damaged_npy(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(InputError, match="cannot be read"):
        read_observations(tmp_path / "a.npy")


def test_truncated_npy_takes_no_memory(tmp_path: Path) -> None:
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (10**12, 2)})
    with pytest.raises(InputError, match="cannot be read"):
        read_observations(tmp_path / "a.npy")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(UsageError):
            read_observations(path)


def test_columns_say_what_the_columns_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sphere = rng.normal(size=(500, 3))
    sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    np.save(tmp_path / "a.npy", sphere)
    with pytest.raises(InputError, match="do not look like x, y, s"):
        read_observations(tmp_path / "a.npy")
    assert read_observations(tmp_path / "a.npy", columns="xys").kind == "samples"
    with pytest.raises(InputError, match="3 columns, not 2"):
        read_observations(tmp_path / "a.npy", columns="xy")
    named = write_csv(tmp_path / "b.csv", sphere, "easting,northing,depth")
    assert read_observations(named, columns="xys").kind == "samples"


def test_what_looks_signed() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(-2, 2, (500, 2))
    assert looks_signed(x, distance(x))
    assert looks_signed(x + 1e6, distance(x))
    assert looks_signed(np.tile(x, (3, 1)), np.tile(distance(x), 3))
    assert not looks_signed(x, 64 * distance(x))
    assert not looks_signed(np.tile(x, (2, 1)), rng.normal(size=1000))


def test_paper_samples_look_signed() -> None:
    """SDFs of images jump by two pixels from a pixel to the next where they change sign."""
    image = np.zeros((64, 64), bool)
    image[20:40, 30:34] = True  # thin: much of it is edge
    i, j = np.nonzero(np.ones_like(image))
    assert looks_signed(np.column_stack((j, i)) / 64, sdf_from_mask(image).ravel().astype(np.float64))


# -- images and their frame ------------------------------------------------------------------------------------------------------------


def test_crop_is_exact() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        image = np.zeros((40, 60), np.uint8)
        top, left, height, width = rng.integers(0, 30), rng.integers(0, 40), rng.integers(1, 11), rng.integers(1, 21)
        image[top : top + height, left : left + width] = rng.integers(128, 256, (height, width))
        square, frame = crop_around(image, extent=20 / 28)
        side = len(square)
        longest = max(height, width)
        assert square.shape == (side, side) and (abs(longest / (20 / 28) - side) <= 0.5 or side == longest + 2)
        # every pixel of the square is where the frame says it is
        for i, j in rng.integers(0, side, (20, 2)):
            x, y = frame.from_field(np.array([(j + 0.5) / side - 0.5, (i + 0.5) / side - 0.5]))
            row, col = round(y - 0.5), round(x - 0.5)
            assert abs(y - 0.5 - row) < 1e-9 and abs(x - 0.5 - col) < 1e-9
            inside = 0 <= row < 40 and 0 <= col < 60
            assert square[i, j] == (image[row, col] if inside else 0)


def test_a_blank_image_has_no_crop() -> None:
    with pytest.raises(InputError, match="only background"):
        crop_around(np.zeros((5, 5), np.uint8), extent=0.7)


def test_a_digit_sized_image_is_sampled_as_in_training() -> None:
    """A 28 x 28 image whose shape has a box of 20 pixels in its middle is its own crop: the context is exactly the training data."""
    image = np.zeros((28, 28), np.uint8)
    image[4:24, 9:19] = 255
    square, frame = crop_around(image, extent=20 / 28)
    assert (square == image).all() and frame.centre == (14, 14) and frame.scale == 1 / 28


@pytest.mark.parametrize("rule", ["dense", "levelset"])
def test_context_of_an_image_lies_on_its_shape(tmp_path: Path, rule: str) -> None:
    path = draw_diamond(tmp_path / "a.png")
    prior = diamond_prior(rule)
    context = context_for(read_observations(path), prior)
    true = distance(context.x, centre=(250, 120), half=80)
    pixel = 1 / context.frame.scale / 64  # type: ignore[union-attr]
    assert len(context.x) == prior.experiment.n_test
    if rule == "levelset":
        assert context.s is None and np.abs(true).max() < pixel
    else:
        true = euclidean(context.x, centre=(250, 120), half=80)
        assert context.s is not None and np.abs(context.s - true).max() < 2 * pixel  # the tips are lost in the pixels
        assert len(np.unique(context.x, axis=0)) == len(context.x)


def test_context_depends_on_the_seed_alone(tmp_path: Path) -> None:
    observed = read_observations(draw_diamond(tmp_path / "a.png"))
    a, b, c = (context_for(observed, diamond_prior("dense"), seed=seed).x for seed in (0, 0, 1))
    assert (a == b).all() and (a != c).any()


def test_samples_for_a_level_set_prior_become_crossings(tmp_path: Path) -> None:
    x = np.random.default_rng(0).uniform(-2, 2, (4000, 2))
    context = context_for(read_observations(write_csv(tmp_path / "a.csv", np.column_stack((x, distance(x))))), diamond_prior("levelset"))
    assert context.s is None and np.abs(distance(context.x)).max() < 0.03  # interpolated across the corners


def test_samples_outside_the_square_are_left_out(tmp_path: Path) -> None:
    x = np.random.default_rng(0).uniform(-4, 4, (2000, 2))
    context = context_for(read_observations(write_csv(tmp_path / "a.csv", np.column_stack((x, distance(x))))), diamond_prior("dense"))
    assert np.abs(context.x).max() <= 1.4 * 1.05 and "left out" in context.notes[0]


# -- results ---------------------------------------------------------------------------------------------------------------------------


def load_npz(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        assert sorted(file.files) == ["sdf", "x", "y"]
        return file["sdf"], file["x"], file["y"]


@pytest.mark.parametrize("rule", ["dense", "levelset"])
def test_image_to_pixels(tmp_path: Path, rule: str) -> None:
    """A shape off the centre of a wide image comes back at its own pixels, in all that is written."""
    path = draw_diamond(tmp_path / "diamond.png")
    summary = reconstruct(path, diamond_prior(rule), tmp_path / "out")
    assert (summary.kind, summary.units, summary.image_size, summary.steps) == ("image", "pixels", (400, 300), 2)
    sdf, x, y = load_npz(tmp_path / "out" / "diamond.npz")
    assert sdf.dtype == np.float32 and sdf.shape == (128, 128) and x.shape == y.shape == (128,)
    points = np.stack(np.meshgrid(x, y), -1)
    # this prior follows the frame, and that the bounding box: whole pixels, so half a pixel on either side
    assert np.abs(sdf - distance(points, centre=(250, 120), half=80)).max() < 1.5
    root, lines = svg_points(tmp_path / "out" / "diamond.svg")
    assert (root.attrib["width"], root.attrib["height"], root.attrib["viewBox"]) == ("400", "300", "0 0 400 300")
    assert len(lines) == 1 and np.abs(distance(lines[0], centre=(250, 120), half=80)).max() < 1.5
    assert np.allclose(lines[0].mean(0), (250, 120), atol=1)
    written = json.loads((tmp_path / "out" / "diamond.json").read_text())
    assert written["residual"] == summary.residual < 1.5 and written["context"] == 256 and written["observations"] == 400 * 300
    assert {p.name for p in (tmp_path / "out").iterdir()} == set(written["files"])
    with Image.open(tmp_path / "out" / "diamond.png") as picture:
        picture.verify()


@pytest.mark.parametrize(("centre", "half"), [((0.0, 0.0), 1.0), ((1e6, -2e6), 1.0), ((5.0, 5.0), 1e-6), ((-3e4, 1e3), 1e4)])
def test_points_in_any_units(tmp_path: Path, centre: tuple[float, float], half: float) -> None:
    path = write_csv(tmp_path / "a.csv", diamond(centre=centre, half=half))
    summary = reconstruct(path, diamond_prior(), tmp_path / "out", resolution=64)
    assert summary.units == "units of the input" and summary.residual < 1e-5 * half
    sdf, x, y = load_npz(tmp_path / "out" / "a.npz")
    assert np.abs(sdf - distance(np.stack(np.meshgrid(x, y), -1), centre=centre, half=half)).max() < 1e-5 * half
    root, lines = svg_points(tmp_path / "out" / "a.svg")
    assert np.abs(distance(lines[0], centre=centre, half=half)).max() < 0.02 * half  # linear interpolation rounds the corners
    left, top, width, height = (float(v) for v in root.attrib["viewBox"].split())
    assert np.allclose((width, height), 2.8 * half, rtol=1e-4) and np.allclose((left + width / 2, top + height / 2), centre, atol=1e-4 * half)


@pytest.mark.parametrize("header", ["", "x,y,s"])
def test_samples(tmp_path: Path, header: str) -> None:
    x = np.random.default_rng(0).uniform(-1.3, 1.3, (3000, 2)) + 7
    path = write_csv(tmp_path / "a.csv", np.column_stack((x, distance(x, centre=(7, 7)))), header)
    summary = reconstruct(path, diamond_prior("dense"), tmp_path / "out")
    assert summary.kind == "samples" and summary.residual < 0.03 and "samples" in summary.residual_of  # the frame is found
    _, lines = svg_points(tmp_path / "out" / "a.svg")
    assert np.abs(distance(lines[0], centre=(7, 7))).max() < 0.05


def test_y_up(tmp_path: Path) -> None:
    """An asymmetric shape: the field sees it as in an image; grid, contour and frame are in the user's upward axis."""
    half = diamond(centre=(0.0, 10.0))
    path = write_csv(tmp_path / "a.csv", half)
    prior = diamond_prior()
    with torch.no_grad():
        prior.conditioner._theta[3].add_(-0.05)  # type: ignore[operator, union-attr]
        prior.conditioner._theta[2][0, 2] *= 1.2  # type: ignore[index, union-attr] # steeper downwards
    down, up = (reconstruct(path, prior, tmp_path / name, y_up=flag, resolution=64) for name, flag in (("down", False), ("up", True)))
    assert (down.y, up.y) == ("down", "up") and down.frame == up.frame
    a, x, y = load_npz(tmp_path / "down" / "a.npz")
    b, x2, y2 = load_npz(tmp_path / "up" / "a.npz")
    assert np.allclose(x, x2) and np.allclose(y, y2) and (np.diff(y2) > 0).all()
    assert np.allclose(b, a[::-1], atol=1e-5) and not np.allclose(b, a, atol=1e-2)
    root, up_lines = svg_points(tmp_path / "up" / "a.svg")
    _, down_lines = svg_points(tmp_path / "down" / "a.svg")
    assert np.allclose(np.sort(up_lines[0][:, 1]), np.sort(20 - down_lines[0][:, 1]), atol=1e-4)
    assert next(root.iter(f"{SVG}g")).attrib["transform"] == "scale(1 -1)"
    assert float(root.attrib["viewBox"].split()[1]) == pytest.approx(-10 - 1.4, abs=1e-4)


def test_svg_far_from_the_origin_has_short_numbers(tmp_path: Path) -> None:
    """Viewers keep seven digits of a path's numbers."""
    reconstruct(write_csv(tmp_path / "a.csv", diamond(centre=(1e6, 2e6))), diamond_prior(), tmp_path / "out", y_up=True, resolution=32)
    root, lines = svg_points(tmp_path / "out" / "a.svg")
    assert max(len(word) for word in re.split(r"[ ,]", next(root.iter(f"{SVG}path")).attrib["d"])) <= 9
    assert next(root.iter(f"{SVG}g")).attrib["transform"] == "scale(1 -1) translate(1000000.00000 2000000.00000)"
    assert np.allclose(lines[0].mean(0), (1e6, 2e6), atol=0.01) and root.attrib["viewBox"].startswith("999998.60000 -2000001.40000 ")


def test_y_up_leaves_images_alone(tmp_path: Path) -> None:
    path = draw_diamond(tmp_path / "a.png")
    results = [reconstruct(path, diamond_prior(), tmp_path / name, y_up=flag) for name, flag in (("a", False), ("b", True))]
    assert results[0].y == results[1].y == "down"
    assert (load_npz(tmp_path / "a" / "a.npz")[0] == load_npz(tmp_path / "b" / "a.npz")[0]).all()


def test_a_shape_beyond_the_square_is_closed_and_said_so(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", diamond())
    summary = reconstruct(path, diamond_prior(half=0.8), tmp_path / "out")
    root, lines = svg_points(tmp_path / "out" / "a.svg")
    left, top, width, height = (float(v) for v in root.attrib["viewBox"].split())
    assert "cut off" in summary.notes[0] and len(lines) == 1
    assert (lines[0] >= (left - 0.02, top - 0.02)).all() and (lines[0] <= (left + width + 0.02, top + height + 0.02)).all()


def test_a_ring_keeps_its_hole(tmp_path: Path) -> None:
    """A diamond whose inside is turned outside near its centre: two closed lines in one even-odd path."""
    prior = diamond_prior()
    spec = FieldSpec(width=5, hidden_layers=0)
    model = MetaSDF(spec, prior.experiment.inner)
    # max(d, 0.2 - |x|...) has no four-unit form; a narrow bump of height 1 at x = 0 does: relu(1 - 8|x|) needs |x| alone
    weights = ([[1.0, 0], [-1, 0], [0, 1], [0, -1], [0, 0]], [0.0, 0, 0, 0, 1], [[1.0, 1, 1, 1, -HALF]], [0.0])
    with torch.no_grad():
        for parameter, value in zip(model._theta, weights, strict=True):
            parameter.copy_(torch.tensor(value))
    ring = Prior(prior.experiment, model)
    # |x| + |y| - HALF; the hole is made by sampling the absolute value of it less a width
    ring.head.to_sdf = lambda out: out.abs() - 0.1  # type: ignore[method-assign]
    reconstruct(write_csv(tmp_path / "a.csv", diamond()), ring, tmp_path / "out")
    root, lines = svg_points(tmp_path / "out" / "a.svg")
    sizes = sorted(np.ptp(line, axis=0).max() / 2.8 for line in lines)
    assert np.allclose(sizes, [2 * (HALF - 0.1), 2 * (HALF + 0.1)], atol=0.02)
    assert next(root.iter(f"{SVG}g")).attrib["fill-rule"] == "evenodd"


@pytest.mark.parametrize("name", ["a&b <c>.csv", "tab\tname.csv", "ümläut ☃.csv"])
def test_svg_is_xml_whatever_the_name(tmp_path: Path, name: str) -> None:
    path = write_csv(tmp_path / name, diamond())
    summary = reconstruct(path, diamond_prior(), tmp_path / "out", resolution=16)
    root, _ = svg_points(tmp_path / "out" / f"{summary.name}.svg")
    assert next(root.iter(f"{SVG}title")).text == name.replace("\t", "")
    assert "http" not in (tmp_path / "out" / f"{summary.name}.svg").read_text().replace("http://www.w3.org/2000/svg", "")


def test_duplicates_do_no_harm(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", np.tile(diamond(), (3, 1)))
    assert reconstruct(path, diamond_prior(), tmp_path / "out").residual < 1e-5


# -- refusals --------------------------------------------------------------------------------------------------------------------------


def test_bare_points_for_a_dense_prior(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", diamond())
    with pytest.raises(InputError, match="mnist-levelset") as caught:
        reconstruct(path, diamond_prior("dense"), tmp_path / "out")
    assert str(path) in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("half", "says"), [(-1.0, "outside everywhere"), (5.0, "inside everywhere"), (float("nan"), "diverged")])
def test_no_surface_in_the_result(tmp_path: Path, half: float, says: str) -> None:
    path = write_csv(tmp_path / "a.csv", diamond())
    with pytest.raises(InputError, match=says) as caught:
        reconstruct(path, diamond_prior(half=half), tmp_path / "out")
    assert caught.value.fix and str(path) in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [{"resolution": 4}, {"resolution": 10_000}, {"steps": 0}])
def test_bad_requests(tmp_path: Path, arguments: Any) -> None:
    with pytest.raises(UsageError):
        reconstruct(write_csv(tmp_path / "a.csv", diamond()), diamond_prior(), tmp_path / "out", **arguments)


def test_a_blank_and_a_damaged_image(tmp_path: Path) -> None:
    Image.new("L", (20, 20)).save(tmp_path / "blank.png")
    (tmp_path / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    for name in ("blank.png", "damaged.png"):
        with pytest.raises(InputError, match=name):
            reconstruct(tmp_path / name, diamond_prior(), tmp_path / "out")


def test_strokes_thinner_than_a_pixel(tmp_path: Path) -> None:
    image = Image.new("L", (3000, 3000))
    ImageDraw.Draw(image).line([(100, 100), (2900, 2900)], fill=255, width=2)
    image.save(tmp_path / "thin.png")
    with pytest.raises(InputError, match=r"thin\.png"):
        reconstruct(tmp_path / "thin.png", diamond_prior(), tmp_path / "out")


# -- names and many files --------------------------------------------------------------------------------------------------------------


def test_the_same_stem_twice(tmp_path: Path) -> None:
    image, table = draw_diamond(tmp_path / "a.png"), write_csv(tmp_path / "a.csv", diamond())
    said: list[str] = []
    assert reconstruct_many([image, table, image], diamond_prior(), tmp_path / "out", say=said.append, resolution=16) == []
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {f"{stem}.{end}" for stem in ("a", "a-csv") for end in ("npz", "png", "svg", "json")}
    assert json.loads((tmp_path / "out" / "a.json").read_text())["kind"] == "image"
    # in separate calls too, and the same input again replaces its own results
    for path in (table, image, table):
        reconstruct(path, diamond_prior(), tmp_path / "out", resolution=16)
    assert {p.name for p in (tmp_path / "out").iterdir()} == names
    assert json.loads((tmp_path / "out" / "a-csv.json").read_text())["kind"] == "points"


def test_inputs_are_never_overwritten(tmp_path: Path) -> None:
    image = draw_diamond(tmp_path / "a.png")
    before = image.read_bytes()
    (tmp_path / "a-png.json").write_text("{}")
    for _ in range(2):
        assert reconstruct_many([image], diamond_prior(), tmp_path, say=lambda text: None, resolution=16) == []
    assert image.read_bytes() == before and (tmp_path / "a-png.json").read_text() == "{}"
    assert (tmp_path / "a-png-2.svg").exists() and not (tmp_path / "a-png-3.svg").exists()


def test_equal_names_from_two_folders(tmp_path: Path) -> None:
    paths = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        paths.append(write_csv(tmp_path / folder / "a.csv", diamond()))
    assert reconstruct_many(paths, diamond_prior(), tmp_path / "out", say=lambda text: None, resolution=16) == []
    assert [json.loads((tmp_path / "out" / f"{name}.json").read_text())["input"] for name in ("a", "a-csv")] == [str(p) for p in paths]
    assert free_name(paths[1], tmp_path / "out", outputs=OUTPUTS, form=FORMAT) == "a-csv"


def test_a_bad_file_does_not_stop_the_others(tmp_path: Path) -> None:
    good = [write_csv(tmp_path / f"{name}.csv", diamond()) for name in "ac"]
    (tmp_path / "b.csv").write_text("x,y\n1,oops\n")
    said: list[str] = []
    paths = [good[0], tmp_path / "b.csv", tmp_path / "none.csv", good[1]]
    failures = reconstruct_many(paths, diamond_prior(), tmp_path / "out", say=said.append, resolution=16)
    assert [f.path.name for f in failures] == ["b.csv", "none.csv"]
    assert {p.stem for p in (tmp_path / "out").iterdir()} == {"a", "c"}
    assert any("2 of 4 inputs failed" in text for text in said) and "line 2" in said[-2] and "what to do" in said[-2]


def test_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from metasdf import reconstruct as module

    write, calls = module.write_whole, []

    def full_disk(path: Path, content: bytes) -> None:
        calls.append(path)
        if len(calls) == 3:
            raise UsageError("cannot write: no space left")
        write(path, content)

    monkeypatch.setattr(module, "write_whole", full_disk)
    with pytest.raises(UsageError):
        reconstruct(write_csv(tmp_path / "a.csv", diamond()), diamond_prior(), tmp_path / "out", resolution=16)
    assert len(calls) == 3 and list((tmp_path / "out").iterdir()) == []


def test_out_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UsageError):
        reconstruct(write_csv(tmp_path / "a.csv", diamond()), diamond_prior(), tmp_path / "out", resolution=16)
    assert (tmp_path / "out").read_text() == "mine"


# -- the whole way, with a step that learns --------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(shift=st.tuples(st.integers(0, 150), st.integers(0, 100)), scale=st.integers(1, 4))
def test_image_contexts_move_with_the_shape(shift: tuple[int, int], scale: int) -> None:
    """Shifted by whole pixels, or enlarged by a whole number, an image gives the same context in its own coordinates."""
    base = np.zeros((40, 50), np.uint8)
    base[5:25, 10:24] = 255
    base[12:18, 14:20] = 0
    image = np.zeros((400, 500), np.uint8)
    big = np.kron(base, np.ones((scale, scale), np.uint8))
    image[shift[1] : shift[1] + big.shape[0], shift[0] : shift[0] + big.shape[1]] = big
    (square, frame), (again, moved) = crop_around(base, extent=20 / 28), crop_around(image, extent=20 / 28)
    assert np.array_equal(np.kron(square, np.ones((scale, scale), np.uint8)), again)
    assert moved.scale * scale == pytest.approx(frame.scale)
    assert np.allclose(moved.centre, np.array(frame.centre) * scale + shift)


def test_silhouette_round_trip(tmp_path: Path) -> None:
    """Image -> contour in pixels: a vertex of the true 64 x 64 contour comes back where it lies in the file."""
    path = draw_diamond(tmp_path / "a.png")
    observed = read_observations(path)
    assert observed.image is not None and (observed.image == read_silhouette(path)).all()
    square, frame = crop_around(observed.image, extent=20 / 28)
    vertices = frame.from_field(contour_points(sdf_from_mask(mask_from_image(square, 64))))
    context = context_for(observed, diamond_prior())
    assert {tuple(p) for p in context.x.round(6)} <= {tuple(p) for p in vertices.round(6)}
