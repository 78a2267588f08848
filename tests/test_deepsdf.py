"""DeepSDF's processed layout: what is written is read again, rows that are not numbers are counted, and damage is a typed error."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metasdf.data import deepsdf
from metasdf.data.deepsdf import is_deepsdf, list_shapes, read_shape, write_shape
from metasdf.data.sources import ShapeKey
from metasdf.errors import InputError, UsageError
from metasdf.geometry import tables

KEY = ShapeKey("ShapeNetV2", "02691156", "abc")
SAMPLES = Path("SdfSamples/ShapeNetV2/02691156/abc.npz")
SURFACE = Path("SurfaceSamples/ShapeNetV2/02691156/abc.ply")
NORMALISATION = Path("NormalizationParameters/ShapeNetV2/02691156/abc.npz")


def ball(n: int = 200) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).uniform(-1, 1, (n, 3)).astype(np.float32)
    return x, (np.linalg.norm(x, axis=1) - 0.8).astype(np.float32)


def save(path: Path, **arrays: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)  # type: ignore[arg-type]


def test_there_and_back(tmp_path: Path) -> None:
    x, s = ball()
    surface = np.random.default_rng(1).normal(size=(30, 3)).astype(np.float32)
    write_shape(tmp_path, KEY, x=x, s=s, surface=surface, offset=(0.1, -0.2, 1e-9), scale=1 / 3)
    assert {p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file()} == {SAMPLES, SURFACE, NORMALISATION}
    assert is_deepsdf(tmp_path) and list_shapes(tmp_path) == [KEY]
    shape = read_shape(tmp_path, KEY)
    order = np.argsort(s <= 0, kind="stable")  # outside ones first
    assert np.array_equal(shape.x, x[order]) and np.array_equal(shape.s, s[order]) and shape.dropped_nan == 0
    assert shape.x.dtype == shape.s.dtype == np.float32
    assert shape.surface is not None and np.array_equal(shape.surface, surface)
    assert shape.offset is not None and shape.offset.tolist() == [0.1, -0.2, 1e-9] and shape.scale == 1 / 3


def test_what_deepsdf_itself_would_read(tmp_path: Path) -> None:
    """Its loader takes arrays `pos` and `neg` with four columns out of the .npz."""
    x, s = ball()
    write_shape(tmp_path, KEY, x=x, s=s)
    with np.load(tmp_path / SAMPLES) as npz:
        assert set(npz.files) == {"pos", "neg"} and npz["pos"].dtype == np.float32 and npz["pos"].shape == ((s > 0).sum(), 4)
        assert (npz["pos"][:, 3] > 0).all() and (npz["neg"][:, 3] <= 0).all()
    shape = read_shape(tmp_path, KEY)
    assert shape.surface is None and shape.offset is None and shape.scale is None


def test_files_of_others(tmp_path: Path) -> None:
    """float64, columns first, compressed, offset as a row, scale as an array of one."""
    x, s = ball()
    rows = np.asfortranarray(np.column_stack((x, s)).astype(np.float64))
    (tmp_path / SAMPLES).parent.mkdir(parents=True)
    np.savez_compressed(tmp_path / SAMPLES, pos=rows, neg=np.zeros((0, 4), np.float32), other=np.array(["text"]))
    save(tmp_path / NORMALISATION, offset=np.array([[1.0, 2, 3]], np.float32), scale=np.array([2.0], np.float32))
    shape = read_shape(tmp_path, KEY)
    assert np.array_equal(shape.x, x) and np.array_equal(shape.s, s)
    assert shape.offset is not None and shape.offset.tolist() == [1, 2, 3] and shape.scale == 2


def test_rows_that_are_not_numbers_are_dropped_and_counted(tmp_path: Path) -> None:
    pos, neg = np.ones((5, 4), np.float32), -np.ones((4, 4), np.float32)
    pos[1, 3], pos[2, 0], neg[0, 1] = np.nan, np.inf, np.nan
    save(tmp_path / SAMPLES, pos=pos, neg=neg)
    shape = read_shape(tmp_path, KEY)
    assert shape.dropped_nan == 3 and shape.s.tolist() == [1, 1, 1, -1, -1, -1]
    save(tmp_path / SAMPLES, pos=pos * np.nan, neg=neg[:0])
    with pytest.raises(InputError, match="no samples"):
        read_shape(tmp_path, KEY)


def test_lists_are_sorted_and_see_only_the_layout(tmp_path: Path) -> None:
    x, s = ball(10)
    keys = [ShapeKey("d", "b", "2"), ShapeKey("d", "a", "3"), ShapeKey("c", "z", "1")]
    for key in keys:
        write_shape(tmp_path, key, x=x, s=s)
    (tmp_path / "SdfSamples" / "stray.npz").write_bytes(b"")
    (tmp_path / "SdfSamples" / "d" / "a" / "note.txt").write_bytes(b"")
    assert list_shapes(tmp_path) == sorted(keys)
    with pytest.raises(UsageError, match="no SdfSamples"):
        list_shapes(tmp_path / "SdfSamples")
    (tmp_path / "empty" / "SdfSamples").mkdir(parents=True)
    with pytest.raises(InputError, match="no shapes"):
        list_shapes(tmp_path / "empty")


def test_samples_come_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shape that is listed is whole: interrupted before the end, it is not listed."""
    written: list[str] = []

    def stop_at_samples(path: Path, data: bytes) -> None:
        written.append(path.parts[-4])
        if path.parts[-4] == "SdfSamples":
            raise KeyboardInterrupt

    monkeypatch.setattr(deepsdf, "write_whole", stop_at_samples)
    x, s = ball(10)
    with pytest.raises(KeyboardInterrupt):
        write_shape(tmp_path, KEY, x=x, s=s, surface=x, offset=(0, 0, 0), scale=1.0)
    assert written == ["NormalizationParameters", "SurfaceSamples", "SdfSamples"]


@pytest.mark.parametrize("part", ["..", "a/b", "", "/etc", "a\\b", ".x", "a\0"])
def test_keys_that_lead_elsewhere(tmp_path: Path, part: str) -> None:
    x, s = ball(10)
    for key in (ShapeKey(part, "b", "c"), ShapeKey("a", part, "c"), ShapeKey("a", "b", part)):
        with pytest.raises(InputError, match="Not a name"):
            read_shape(tmp_path, key)
        with pytest.raises(InputError, match="Not a name"):
            write_shape(tmp_path, key, x=x, s=s)
    assert list(tmp_path.iterdir()) == []


def test_writing_refuses(tmp_path: Path) -> None:
    x, s = ball(10)
    for bad in ({"x": x[:5], "s": s}, {"x": x[:, :2], "s": s}, {"x": x, "s": s[:, None]}, {"x": x, "s": s, "scale": 1.0}):
        with pytest.raises(UsageError):
            write_shape(tmp_path, KEY, **bad)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="not finite"):
        write_shape(tmp_path, KEY, x=x, s=s * np.nan)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"pos": np.zeros((3, 4))}, "cannot be read"),
        ({"pos": np.zeros((3, 4)), "neg": np.zeros((3, 3))}, "four columns"),
        ({"pos": np.zeros(4), "neg": np.zeros((3, 4))}, "four columns"),
        ({"pos": np.array([["a"] * 4]), "neg": np.zeros((3, 4))}, "cannot be read"),
        ({"pos": np.array([[None] * 4]), "neg": np.zeros((3, 4))}, "cannot be read"),
    ],
)
def test_samples_of_another_kind(tmp_path: Path, arrays: dict[str, np.ndarray], says: str) -> None:
    save(tmp_path / SAMPLES, **arrays)
    with pytest.raises(InputError, match=says):
        read_shape(tmp_path, KEY)


@pytest.mark.parametrize(("offset", "scale"), [([0, 0], 1), ([0, 0, np.nan], 1), *(([0, 0, 0], scale) for scale in (0, -1, np.inf, [1, 2]))])
def test_normalisation_of_another_kind(tmp_path: Path, offset: list[float], scale: float) -> None:
    write_shape(tmp_path, KEY, x=ball()[0], s=ball()[1])
    save(tmp_path / NORMALISATION, offset=np.array(offset, np.float64), scale=np.array(scale, np.float64))
    with pytest.raises(InputError, match="offset should be"):
        read_shape(tmp_path, KEY)


def test_surface_that_is_broken(tmp_path: Path) -> None:
    write_shape(tmp_path, KEY, x=ball()[0], s=ball()[1], surface=ball()[0] * np.nan)
    with pytest.raises(InputError, match="surface are not finite"):
        read_shape(tmp_path, KEY)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_shape(tmp_path, KEY)


def npz_with(header: str, body: bytes) -> bytes:
    """An .npz whose arrays claim whatever the header says."""
    text = header.encode().ljust(117) + b"\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("pos", "neg"):
            archive.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body)
    return buffer.getvalue()


@pytest.mark.parametrize("header", [
    "{'descr': '<f4', 'fortran_order': False, 'shape': (100000000000, 4)}", "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4)}",
    "{'descr': '|O', 'fortran_order': False, 'shape': (4, 4)}", "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4)}",
    "{'descr': [('a', '<f4', (4,))], 'fortran_order': False, 'shape': (4,)}", "__import__('os').abort()", "{" * 50])  # fmt: skip
def test_headers_that_lie(tmp_path: Path, header: str) -> None:
    (tmp_path / SAMPLES).parent.mkdir(parents=True)
    (tmp_path / SAMPLES).write_bytes(npz_with(header, bytes(64)))
    with pytest.raises(InputError, match="cannot be read"):
        read_shape(tmp_path, KEY)


def test_declared_sizes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shape(tmp_path, KEY, x=ball()[0], s=ball()[1])
    monkeypatch.setattr(tables, "MAX_ARRAY_BYTES", 500)
    with pytest.raises(InputError, match="more than 500"):
        read_shape(tmp_path, KEY)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from([SAMPLES, SURFACE, NORMALISATION]), st.integers(0, 10**6), st.integers(0, 255), st.booleans())
def test_damaged_files_give_a_shape_or_a_typed_error(tmp_path_factory, which: Path, place: int, byte: int, cut: bool) -> None:
    root = tmp_path_factory.mktemp("deepsdf")
    x, s = ball(20)
    write_shape(root, KEY, x=x, s=s, surface=x, offset=(0, 0, 0), scale=1.0)
    raw = bytearray((root / which).read_bytes())
    place %= len(raw)
    if cut:
        del raw[place:]
    else:
        raw[place] = byte
    (root / which).write_bytes(bytes(raw))
    try:
        shape = read_shape(root, KEY)
    except InputError as error:
        assert str(which.name) in error.where
    else:
        assert shape.x.shape == (20 - shape.dropped_nan, 3)
