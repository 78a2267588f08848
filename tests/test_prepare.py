"""Sources -> stores: splits, determinism, accounting, and nothing half-written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metasdf.data import mnist as mnist_module
from metasdf.data import prepare as prepare_module
from metasdf.data.mnist import MNIST
from metasdf.data.prepare import prepare, prepare_images, prepare_mnist, prepare_slice
from metasdf.data.splits import keyed_order
from metasdf.data.store import MANIFEST, Store
from metasdf.errors import InputError, UsageError
from metasdf.geometry.image import contour_points, mask_from_image, sdf_from_mask

OFFICIAL = Path(__file__).parents[1].parent / "shared" / "data" / "mnist"
needs_mnist = pytest.mark.skipif(not OFFICIAL.is_dir(), reason="needs the official MNIST files in ../shared/data/mnist")


def same_files(a: Path, b: Path) -> bool:
    names = sorted(p.name for p in a.iterdir())
    return names == sorted(p.name for p in b.iterdir()) and all((a / n).read_bytes() == (b / n).read_bytes() for n in names)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for an MNIST folder: reading it gives 40 + 10 digits of the shipped slice."""
    images, labels, _ = mnist_module.load_slice()
    order = np.random.default_rng(0).permutation(100)[:50]
    digits = MNIST(images[order[:40]], labels[order[:40]].astype(np.uint8), images[order[40:]], labels[order[40:]].astype(np.uint8))
    monkeypatch.setattr(prepare_module, "read_mnist", lambda source, allow_unofficial=False: digits)
    folder = tmp_path / "idx"
    folder.mkdir()
    (folder / "t10k-labels-idx1-ubyte.gz").touch()
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twelve usable silhouettes in two sub-folders, and four files that cannot be used."""
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    y, x = np.mgrid[:40, :40]
    for k in range(12):
        shape = (x - 20) ** 2 + ((y - 20) * (1 + k / 12)) ** 2 < 150
        Image.fromarray((shape ^ (k % 2 == 0)).astype(np.uint8) * 255).save((folder / "sub" if k % 3 else folder) / f"shape{k:02}.PNG")
    Image.new("L", (8, 8), 255).save(folder / "blank.png")
    (folder / "broken.jpg").write_bytes(b"not a jpeg")
    Image.fromarray(np.pad(np.full((1, 1), 255, np.uint8), 300)).save(folder / "speck.png")
    (folder / "empty.bmp").touch()
    (folder / "notes.txt").write_text("ignored")
    return folder


def test_mnist_store(source: Path, tmp_path: Path) -> None:
    store = prepare_mnist(source, tmp_path / "data", resolution=32, val=5, seed=3, workers=1, progress=False)
    digits = prepare_module.read_mnist(source)
    assert store.kind == "image-sdf-2d" and len(store) == 50
    assert store.arrays["sdf"].shape == (50, 32, 32) and store.arrays["sdf"].dtype == np.float32
    np.testing.assert_array_equal(store.arrays["labels"], np.concatenate([digits.train_labels, digits.test_labels]))
    offsets = store.arrays["contour_offsets"]
    assert offsets.dtype == np.int64 and offsets.shape == (51,) and offsets[-1] == len(store.arrays["contour_points"])
    for row, image in ((0, digits.train_images[0]), (39, digits.train_images[39]), (40, digits.test_images[0]), (49, digits.test_images[9])):
        sdf = sdf_from_mask(mask_from_image(image, 32))
        np.testing.assert_array_equal(store.arrays["sdf"][row], sdf)
        np.testing.assert_array_equal(store.arrays["contour_points"][offsets[row] : offsets[row + 1]], contour_points(sdf))
    train, val, test = (store.splits[name] for name in ("train", "val", "test"))
    assert (len(train), len(val)) == (35, 5) and sorted([*train, *val]) == list(range(40)) and test.tolist() == list(range(40, 50))
    assert store.meta["rows"] == {"train": [0, 40], "test": [40, 50]} and store.meta["licence"] == "CC BY-SA 3.0"
    Store.open(tmp_path / "data", verify=True)


def test_the_seed_decides_the_validation_digits(source: Path, tmp_path: Path) -> None:
    stores = [prepare_mnist(source, tmp_path / str(k), val=5, seed=seed, resolution=16, workers=1, progress=False)
              for k, seed in enumerate((0, 0, 1))]
    assert stores[0].fingerprint == stores[1].fingerprint
    assert stores[0].splits["val"].tolist() != stores[2].splits["val"].tolist()
    # a fixed value: no version of any library may change which digits these are
    assert keyed_order(["train/0", "train/1", "train/2", "train/3", "train/4"], 0).tolist() == [1, 4, 0, 3, 2]


def test_one_worker_and_two_write_the_same_bytes(source: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "CHUNK_DIGITS", 7)
    monkeypatch.setattr(prepare_module, "CHUNK_FILES", 3)
    for workers in (1, 2):
        prepare_mnist(source, tmp_path / f"digits{workers}", val=5, workers=workers, resolution=16, progress=False)
        prepare_images(pictures, tmp_path / f"pictures{workers}", workers=workers, resolution=16, progress=False)
    assert same_files(tmp_path / "digits1", tmp_path / "digits2") and same_files(tmp_path / "pictures1", tmp_path / "pictures2")
    monkeypatch.setattr(prepare_module, "CHUNK_DIGITS", 50)
    assert prepare_mnist(source, tmp_path / "whole", val=5, workers=1, resolution=16, progress=False).fingerprint == \
        Store.open(tmp_path / "digits1").fingerprint


def test_a_second_run_reuses_the_store_and_another_one_is_refused(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    prepare_mnist(source, out, val=5, resolution=16, workers=1, progress=False)
    written = (out / MANIFEST).stat().st_mtime_ns
    calls: list[tuple[int, int]] = []
    prepare_mnist(source, out, val=5, resolution=16, workers=1, progress=lambda done, total: calls.append((done, total)))
    assert (out / MANIFEST).stat().st_mtime_ns == written and not calls
    with pytest.raises(UsageError, match="Another data set") as caught:
        prepare_mnist(source, out, val=6, resolution=16, progress=False)
    assert "different val" in caught.value.cause
    assert len(prepare_mnist(source, out, val=6, resolution=16, workers=1, force=True, progress=False).splits["val"]) == 6


def test_limit_takes_the_first_of_each_part(source: Path, tmp_path: Path) -> None:
    store = prepare_mnist(source, tmp_path / "data", limit=8, resolution=16, workers=1, progress=False, contours=False)
    digits = prepare_module.read_mnist(source)
    assert len(store) == 16 and [len(store.splits[s]) for s in ("train", "val", "test")] == [7, 1, 8]
    np.testing.assert_array_equal(store.arrays["labels"], np.concatenate([digits.train_labels[:8], digits.test_labels[:8]]))
    assert store.arrays["contour_points"].shape == (0, 2) and not store.arrays["contour_offsets"].any() and store.meta["contours"] is False


@pytest.mark.parametrize("options", [{"val": 40}, {"val": -1}, {"limit": 1}, {"workers": 0}, {"resolution": 0}])
def test_bad_options_leave_nothing(source: Path, tmp_path: Path, options: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        prepare_mnist(source, tmp_path / "data", **{"val": 5, "progress": False, "workers": 1, **options})  # type: ignore[arg-type]
    assert [p.name for p in tmp_path.iterdir()] == ["idx"]


def test_an_error_in_a_worker_arrives_whole(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = prepare_module.read_mnist(source)
    digits.test_images[3] = 255
    monkeypatch.setattr(prepare_module, "CHUNK_DIGITS", 6)
    with pytest.raises(InputError, match="every pixel is foreground") as caught:
        prepare_mnist(source, tmp_path / "data", val=5, resolution=16, workers=2, progress=False)
    assert caught.value.where == "image 43" and caught.value.cause and caught.value.fix
    assert [p.name for p in tmp_path.iterdir()] == ["idx"]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupt_leaves_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    monkeypatch.setattr(prepare_module, "CHUNK_DIGITS", 5)

    def interrupt(done: int, total: int) -> None:
        assert (done, total) == (5, 50)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_mnist(source, tmp_path / "data", val=5, resolution=16, workers=workers, progress=interrupt)
    assert [p.name for p in tmp_path.iterdir()] == ["idx"]


def test_a_blank_digit_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels, _ = mnist_module.load_slice()
    images[13] = 0
    monkeypatch.setattr(prepare_module, "load_slice", lambda: (images, labels, np.arange(100)))
    with pytest.raises(InputError, match="no edge") as caught:
        prepare_slice(tmp_path / "data", resolution=16, progress=False)
    assert caught.value.where == "image 13" and not list(tmp_path.iterdir())


def test_slice_store(tmp_path: Path) -> None:
    store = prepare("mnist-slice", tmp_path / "data", resolution=16, progress=False)
    assert [len(store.splits[s]) for s in ("train", "val", "test")] == [60, 20, 20]
    for rows, each in ((store.splits["train"], 6), (store.splits["val"], 2), (store.splits["test"], 2)):
        assert np.bincount(store.arrays["labels"][rows]).tolist() == [each] * 10
    assert sorted(np.concatenate(list(store.splits.values()))) == list(range(100))
    assert store.meta["comparable"] is False and "not comparable" in store.meta["note"] and len(store.meta["test_indices"]) == 100
    assert prepare("mnist-slice", tmp_path / "data", resolution=16, progress=False).fingerprint == store.fingerprint


def test_image_folder(pictures: Path, tmp_path: Path) -> None:
    store = prepare_images(pictures, tmp_path / "data", resolution=24, workers=1, progress=False)
    meta = store.meta
    assert (meta["found"], meta["kept"], meta["dropped_count"], len(store)) == (16, 12, 4, 12)
    assert meta["names"] == sorted(meta["names"]) and len(meta["names"]) == 12 and "sub/shape01.PNG" in meta["names"]
    reasons = {d["name"]: d["reason"] for d in meta["dropped"]}
    assert set(reasons) == {"blank.png", "broken.jpg", "speck.png", "empty.bmp"}
    assert "only" in reasons["blank.png"] and "cannot be read" in reasons["broken.jpg"] and "no edge" in reasons["speck.png"]
    assert store.arrays["labels"].tolist() == [-1] * 12
    assert [len(store.splits[s]) for s in ("train", "val", "test")] == [10, 1, 1]
    assert sorted(np.concatenate(list(store.splits.values()))) == list(range(12))
    assert (store.arrays["sdf"][:, 12, 12] < 0).all()  # dark or bright, the shape is the one in the middle
    again = prepare(pictures, tmp_path / "data", resolution=24, progress=False)
    assert again.fingerprint == store.fingerprint
    (pictures / "broken.jpg").write_bytes(b"another file")
    with pytest.raises(UsageError, match="Another data set"):
        prepare_images(pictures, tmp_path / "data", resolution=24, progress=False)


def test_image_split_shares(pictures: Path, tmp_path: Path) -> None:
    store = prepare_images(pictures, tmp_path / "data", resolution=16, workers=1, split=(50, 25, 25), seed=1, progress=False)
    assert [len(store.splits[s]) for s in ("train", "val", "test")] == [6, 3, 3]
    few = prepare_images(pictures, tmp_path / "few", resolution=16, workers=1, limit=6, foreground="auto", progress=False)
    assert few.meta["found"] == 6 and [len(few.splits[s]) for s in ("train", "val", "test")] == [len(few) - 2 if len(few) > 2 else len(few), 1, 1]
    for split in ((0, 50, 50), (80, -10, 30), (float("nan"), 1, 1), (80, 20)):
        with pytest.raises(UsageError, match="split"):
            prepare_images(pictures, tmp_path / "bad", split=split, progress=False)  # type: ignore[arg-type]


def test_image_folder_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        prepare_images(tmp_path / "absent", tmp_path / "data", progress=False)
    with pytest.raises(UsageError, match="does not exist"):
        prepare(tmp_path / "absent", tmp_path / "data", progress=False)
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="no images"):
        prepare(tmp_path / "none", tmp_path / "data", progress=False)
    (tmp_path / "none" / "bad.png").write_bytes(b"bad")
    with pytest.raises(InputError, match="None of the 1 images") as caught:
        prepare(tmp_path / "none", tmp_path / "data", progress=False)
    assert "bad.png" in caught.value.cause and not (tmp_path / "data").exists()
    with pytest.raises(UsageError, match="val is for MNIST"):
        prepare(tmp_path / "none", tmp_path / "data", val=3, progress=False)


def test_prepare_finds_out_what_the_source_is(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "download_mnist", lambda: source)
    stores = [prepare(what, tmp_path / f"out{k}", val=5, resolution=16, workers=1, progress=False)
              for k, what in enumerate((None, "mnist", source, source / "t10k-labels-idx1-ubyte.gz"))]
    assert len({store.fingerprint for store in stores}) == 1


def test_progress_without_a_terminal_is_plain_lines(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "CHUNK_DIGITS", 10)
    prepare_mnist(source, tmp_path / "data", val=5, resolution=16, workers=1)
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1] == "signed distances: 50 of 50" and "\x1b" not in captured.err and captured.out == ""


def test_progress_on_a_terminal_is_a_bar_on_standard_error(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    prepare_mnist(source, tmp_path / "data", val=5, resolution=16, workers=1)
    captured = capsys.readouterr()
    assert "50/50" in captured.err and captured.out == ""


def test_a_program_from_standard_input_works_alone(tmp_path: Path, pictures: Path) -> None:
    program = ("from metasdf.data import prepare as p\np.CHUNK_FILES = 2\n"
               f"p.prepare_images({str(pictures)!r}, {str(tmp_path / 'data')!r}, resolution=16, workers=2, progress=False)\n")
    subprocess.run([sys.executable, "-"], input=program, text=True, timeout=60, check=True)
    assert len(Store.open(tmp_path / "data")) == 12


def test_an_unguarded_script_is_told_so(tmp_path: Path, pictures: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("from metasdf.data import prepare as p\np.CHUNK_FILES = 2\n"
                      f"p.prepare_images({str(pictures)!r}, {str(tmp_path / 'data')!r}, resolution=16, workers=2, progress=False)\n")
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, env=os.environ)
    assert result.returncode != 0 and "__name__ == '__main__'" in result.stderr and "workers=1" in result.stderr
    assert not [p for p in tmp_path.iterdir() if "data" in p.name]


@needs_mnist
def test_official_digits_of_the_paper(tmp_path: Path) -> None:
    store = prepare(OFFICIAL, tmp_path / "data", limit=20, workers=1, progress=False)
    assert store.arrays["labels"][:5].tolist() == [5, 0, 4, 1, 9] and store.arrays["labels"][20:23].tolist() == [7, 2, 1]
    assert store.arrays["sdf"].shape == (40, 64, 64) and np.abs(store.arrays["sdf"]).min() * 64 == 1  # +-1 pixel beside an edge, never 0
    assert json.loads((tmp_path / "data" / MANIFEST).read_text())["meta"]["source"] == "MNIST"
