"""geometry.image against closed forms and slow twins."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import ArrayLike
from PIL import Image

from metasdf.errors import InputError, UsageError
from metasdf.geometry import image as image_module
from metasdf.geometry.image import contour_lines, contour_points, mask_from_image, pixel_grid, read_silhouette, sdf_from_mask


def disc(resolution: int, radius: float, centre: ArrayLike = (0.0, 0.0)) -> np.ndarray:
    """Mask of the pixels whose centres lie within `radius` of `centre` (x, y), in field coordinates."""
    return (np.linalg.norm(pixel_grid(resolution) - np.array(centre), axis=1) < radius).reshape(resolution, resolution)


def brute_force_sdf(mask: np.ndarray) -> np.ndarray:
    """Every pixel against every pixel of the other colour."""
    at = np.argwhere(np.ones_like(mask)).reshape(*mask.shape, 2)
    sdf = np.empty(mask.shape)
    for i, j in np.ndindex(mask.shape):
        others = at[mask != mask[i, j]]
        sdf[i, j] = (-1 if mask[i, j] else 1) * np.sqrt(((others - (i, j)) ** 2).sum(1)).min()
    return sdf / max(mask.shape)


def test_pixel_grid_is_row_major_and_centred() -> None:
    grid = pixel_grid(4)
    assert grid.shape == (16, 2) and grid.dtype == np.float32
    np.testing.assert_allclose(grid[0], [-0.375, -0.375])
    np.testing.assert_allclose(grid[1], [-0.125, -0.375])  # one step along a row moves x
    np.testing.assert_allclose(grid[4], [-0.375, -0.125])
    np.testing.assert_allclose(grid.mean(0), 0, atol=1e-7)


@pytest.mark.parametrize("resolution", [0, -1, 2.5, True, "64", 10**6])
def test_bad_resolutions_are_usage_errors(resolution: object) -> None:
    with pytest.raises(UsageError, match="resolution"):
        pixel_grid(resolution)  # type: ignore[arg-type]


def test_sdf_of_a_half_plane() -> None:
    mask = np.zeros((16, 16), bool)
    mask[:, 10:] = True
    j = np.arange(16)
    expected = np.where(j < 10, 10 - j, -(j - 9)) / 16
    np.testing.assert_allclose(sdf_from_mask(mask), np.broadcast_to(expected, (16, 16)), atol=1e-7)


def test_sdf_of_a_rectangle() -> None:
    mask = np.zeros((32, 32), bool)
    mask[8:20, 5:25] = True
    i, j = np.mgrid[:32, :32]
    outside = np.hypot(np.maximum(np.maximum(8 - i, i - 19), 0), np.maximum(np.maximum(5 - j, j - 24), 0))
    inside = np.minimum(np.minimum(i - 7, 20 - i), np.minimum(j - 4, 25 - j))
    np.testing.assert_allclose(sdf_from_mask(mask), np.where(mask, -inside, outside) / 32, atol=1e-6)


def test_sdf_of_a_disc_is_the_distance_within_a_pixel() -> None:
    resolution, radius = 128, 0.3
    true = np.linalg.norm(pixel_grid(resolution), axis=1).reshape(resolution, resolution) - radius
    difference = (sdf_from_mask(disc(resolution, radius)) - true) * resolution
    assert np.abs(difference).max() < 1.0
    excess = np.abs(sdf_from_mask(disc(resolution, radius))) - np.abs(true)
    assert excess.mean() * resolution == pytest.approx(0.25, abs=0.05)  # the bias that the docstring states


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)))
def test_sdf_equals_brute_force(mask: np.ndarray) -> None:
    if mask.all() or not mask.any():
        with pytest.raises(InputError, match="no edge"):
            sdf_from_mask(mask)
        return
    sdf = sdf_from_mask(mask)
    assert sdf.dtype == np.float32
    np.testing.assert_allclose(sdf, brute_force_sdf(mask), atol=1e-6)
    np.testing.assert_array_equal(sdf < 0, mask)
    np.testing.assert_array_equal(sdf_from_mask(~mask), -sdf)


@pytest.mark.parametrize("mask", [np.zeros((4, 4)), np.zeros(4, bool), np.zeros((0, 4), bool), np.zeros((2, 2, 2), bool)])
def test_what_is_no_mask_is_refused(mask: np.ndarray) -> None:
    with pytest.raises(InputError, match="two-dimensional"):
        sdf_from_mask(mask)


@pytest.mark.parametrize("resolution", [64, 33])
def test_contour_of_a_disc_is_unbiased(resolution: int) -> None:
    rng, pixel = np.random.default_rng(0), 1 / resolution
    radius_errors, centre_errors = [], []
    for _ in range(100):
        centre, radius = rng.uniform(-0.1, 0.1, 2), rng.uniform(0.2, 0.3)
        points = contour_points(sdf_from_mask(disc(resolution, radius, centre)))
        radii = np.linalg.norm(points - centre, axis=1)
        assert np.abs(radii - radius).max() < 0.75 * pixel
        radius_errors.append(radii.mean() - radius)
        centre_errors.append(points.mean(0) - centre)
    # over random discs nothing is left; contours that are half a pixel off, as the reference's, would show 0.5
    assert abs(np.mean(radius_errors)) < 0.03 * pixel
    assert np.abs(np.mean(centre_errors, axis=0)).max() < 0.05 * pixel


def test_contour_of_an_exact_field_converges_quadratically() -> None:
    errors = []
    for resolution in (32, 64):
        field = np.linalg.norm(pixel_grid(resolution).astype(float) - (0.03, -0.02), axis=1).reshape(resolution, resolution) - 0.3
        errors.append(np.abs(np.linalg.norm(contour_points(field) - (0.03, -0.02), axis=1) - 0.3).max())
    assert errors[0] < 1e-3 and errors[1] < 0.4 * errors[0]


def test_contour_points_are_the_midpoints_between_pixels_of_opposite_sign() -> None:
    mask = np.random.default_rng(0).random((20, 20)) > 0.6
    centres = pixel_grid(20).reshape(20, 20, 2)
    right, down = mask[:, 1:] != mask[:, :-1], mask[1:] != mask[:-1]
    expected = np.concatenate([((centres[:, 1:] + centres[:, :-1]) / 2)[right], ((centres[1:] + centres[:-1]) / 2)[down]])
    points = contour_points(sdf_from_mask(mask))
    assert len(points) == len(expected)  # each once
    np.testing.assert_allclose(points[np.lexsort(points.round(4).T)], expected[np.lexsort(expected.round(4).T)], atol=1e-6)


def test_contour_lines_are_closed_inside_and_open_at_the_border() -> None:
    (ring,) = contour_lines(sdf_from_mask(disc(32, 0.3)))
    np.testing.assert_array_equal(ring[0], ring[-1])
    assert len(contour_points(sdf_from_mask(disc(32, 0.3)))) == len(ring) - 1
    half = np.zeros((8, 8), bool)
    half[:3] = True
    (line,) = contour_lines(sdf_from_mask(half))
    assert len(line) == 8
    np.testing.assert_allclose(line[:, 1], 3 / 8 - 0.5, atol=1e-7)  # the edge between rows 2 and 3: y points down


def test_contours_without_a_surface_and_of_bad_grids() -> None:
    assert contour_lines(np.ones((5, 5))) == [] and contour_points(np.ones((5, 5))).shape == (0, 2)
    with pytest.raises(InputError, match="square"):
        contour_points(np.ones((5, 6)))
    with pytest.raises(InputError, match="not finite"):
        contour_points(np.full((5, 5), np.nan))


def test_mask_from_image_thresholds_and_resizes() -> None:
    image = np.array([[0, 127], [128, 255]], np.uint8)
    np.testing.assert_array_equal(mask_from_image(image, 2), [[False, False], [True, True]])
    np.testing.assert_array_equal(mask_from_image(image, 2, threshold=0.4), [[False, True], [True, True]])
    np.testing.assert_array_equal(mask_from_image(Image.fromarray(image).convert("RGB"), 2), [[False, False], [True, True]])
    shape = disc(28, 0.3)
    np.testing.assert_array_equal(mask_from_image(shape, 28), shape)
    larger = mask_from_image(shape, 64)
    assert larger.dtype == bool and abs(larger.mean() - np.pi * 0.09) < 0.02
    assert np.abs(pixel_grid(64)[larger.ravel()].mean(0)).max() < 1e-6  # resizing moves nothing


def test_mask_from_image_pads_to_a_square() -> None:
    mask = mask_from_image(np.full((4, 8), 255, np.uint8), 8)
    np.testing.assert_array_equal(mask.all(1), [False, False, True, True, True, True, False, False])


@pytest.mark.parametrize("image", [np.zeros((2, 2)), np.zeros((2, 2, 3), np.uint8), np.zeros((0, 2), np.uint8)])
def test_mask_from_image_refuses_other_arrays(image: np.ndarray) -> None:
    with pytest.raises(InputError, match="uint8"):
        mask_from_image(image, 8)


def test_mask_from_image_refuses_bad_thresholds() -> None:
    with pytest.raises(UsageError, match="threshold"):
        mask_from_image(np.zeros((2, 2), np.uint8), 8, threshold=1.0)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp"])
@pytest.mark.parametrize("dark", [False, True])
def test_read_silhouette_finds_the_polarity(tmp_path: Path, suffix: str, dark: bool) -> None:
    shape = disc(32, 0.3)
    path = tmp_path / f"shape{suffix}"
    Image.fromarray(np.where(shape ^ dark, 250, 5).astype(np.uint8)).save(path)
    for foreground in ("auto", "dark" if dark else "bright"):
        np.testing.assert_array_equal(read_silhouette(path, foreground=foreground) > 127, shape)
    inverse = read_silhouette(path, foreground="bright" if dark else "dark")
    np.testing.assert_array_equal(inverse > 127, ~shape)


def test_read_silhouette_uses_an_alpha_channel_that_says_something(tmp_path: Path) -> None:
    shape = disc(32, 0.3)
    colours = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    path = tmp_path / "alpha.png"
    Image.fromarray(np.dstack([colours, np.where(shape, 255, 0).astype(np.uint8)])).save(path)
    np.testing.assert_array_equal(read_silhouette(path, foreground="dark") > 127, shape)
    grey = np.where(shape, 10, 240).astype(np.uint8)
    Image.fromarray(np.dstack([grey, grey, grey, np.full_like(grey, 255)])).save(path)  # constant: it says nothing
    np.testing.assert_array_equal(read_silhouette(path) > 127, shape)


def test_read_silhouette_scales_sixteen_bits_and_obeys_exif(tmp_path: Path) -> None:
    shape = disc(32, 0.3)
    Image.fromarray(np.where(shape, 60_000, 1_000).astype(np.uint16)).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_silhouette(tmp_path / "deep.png") > 127, shape)
    lying = Image.fromarray(np.pad(np.full((4, 4), 255, np.uint8), ((1, 9), (2, 3))))
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees to view"
    lying.save(tmp_path / "turned.png", exif=exif)
    assert lying.size == (9, 14) and read_silhouette(tmp_path / "turned.png").shape == (9, 14)


@pytest.mark.parametrize("value", [0, 255, 90])
def test_blank_images_are_errors(tmp_path: Path, value: int) -> None:
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(tmp_path / "blank.png")
    for foreground in ("auto", "bright", "dark"):
        with pytest.raises(InputError, match="shows only") as caught:
            read_silhouette(tmp_path / "blank.png", foreground=foreground)
        assert "blank.png" in caught.value.where


def test_ambiguous_background_is_an_error(tmp_path: Path) -> None:
    image = np.zeros((8, 8), np.uint8)
    image[:, 4:] = 255
    Image.fromarray(image).save(tmp_path / "half.png")
    with pytest.raises(InputError, match="Cannot tell"):
        read_silhouette(tmp_path / "half.png")
    assert (read_silhouette(tmp_path / "half.png", foreground="bright")[:, 4:] == 255).all()


def test_unreadable_files_name_themselves(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(disc(32, 0.3)).save(buffer, "PNG")
    (tmp_path / "cut.png").write_bytes(buffer.getvalue()[:60])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (tmp_path / "folder.png").mkdir()
    for name in ("cut.png", "empty.png", "script.png", "folder.png", "absent.png"):
        with pytest.raises(InputError) as caught:
            read_silhouette(tmp_path / name)
        assert name in caught.value.where
    with pytest.raises(UsageError, match="foreground"):
        read_silhouette(tmp_path / "cut.png", foreground="red")  # type: ignore[arg-type]


def test_absurd_sizes_are_refused_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(disc(32, 0.3)).save(tmp_path / "big.png")
    monkeypatch.setattr(image_module, "MAX_PIXELS", 100)
    with pytest.raises(InputError, match="too large"):
        read_silhouette(tmp_path / "big.png")
    monkeypatch.setattr(image_module, "MAX_PIXELS", 10**9)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InputError, match="too large"):
        read_silhouette(tmp_path / "big.png")


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_random_bytes_give_typed_errors_only(tmp_path_factory: pytest.TempPathFactory, data: bytes, signature: bool) -> None:
    path = tmp_path_factory.getbasetemp() / "random.png"
    path.write_bytes((b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" if signature else b"") + data)
    with pytest.raises(InputError):
        read_silhouette(path)
