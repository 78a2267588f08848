"""The MNIST reader: every file is verified, every failure is typed and names its file."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metasdf.data import mnist
from metasdf.data.mnist import PARTS, default_cache, download_mnist, holds_mnist, load_slice, parse_idx, read_mnist
from metasdf.errors import InputError, MetaSDFError, UsageError

OFFICIAL = Path(__file__).parents[1].parent / "shared" / "data" / "mnist"
needs_mnist = pytest.mark.skipif(not OFFICIAL.is_dir(), reason="needs the official MNIST files in ../shared/data/mnist")


def idx(array: np.ndarray) -> bytes:
    return (0x0800 + array.ndim).to_bytes(4, "big") + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def write_gz(path: Path, data: bytes) -> None:
    path.write_bytes(gzip.compress(data, 1, mtime=0))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """MNIST in small: six training and three test images, declared official. Name -> gzipped bytes."""
    rng = np.random.default_rng(0)
    parts, files = [], {}
    for part in PARTS:
        shape = (6 if "train" in part.field else 3, *part.shape[1:])
        data = idx(rng.integers(0, 256 if len(shape) == 3 else 10, shape, dtype=np.uint8))
        parts.append(part._replace(shape=shape, md5=hashlib.md5(data).hexdigest()))
        files[part.name + ".gz"] = gzip.compress(data, mtime=0)
    monkeypatch.setattr(mnist, "PARTS", tuple(parts))
    return files


@pytest.fixture
def folder(tiny: dict[str, bytes], tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    for name, data in tiny.items():
        (tmp_path / "source" / name).write_bytes(data)
    return tmp_path / "source"


def make_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def make_tar(path: Path, files: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@needs_mnist
def test_the_official_files() -> None:
    digits = read_mnist(OFFICIAL)
    assert digits.train_images.shape == (60_000, 28, 28) and digits.test_images.shape == (10_000, 28, 28)
    assert digits.train_labels[:5].tolist() == [5, 0, 4, 1, 9] and digits.test_labels[:5].tolist() == [7, 2, 1, 0, 4]
    images, labels, indices = load_slice()
    np.testing.assert_array_equal(images, digits.test_images[indices])
    np.testing.assert_array_equal(labels, digits.test_labels[indices])
    assert all((indices[labels == c] == np.flatnonzero(digits.test_labels == c)[:10]).all() for c in range(10))


def test_the_shipped_slice() -> None:
    images, labels, indices = load_slice()
    assert images.shape == (100, 28, 28) and images.dtype == np.uint8 and images.flags.c_contiguous
    assert np.bincount(labels).tolist() == [10] * 10 and len(set(indices.tolist())) == 100 and indices.max() < 10_000
    sheet = Path(mnist.__file__).parent / "mnist_slice" / "mnist_slice.png"
    assert sheet.stat().st_size < 100_000
    readme = (sheet.parent / "README.md").read_text()
    assert all(word in readme for word in ("LeCun", "Cortes", "Burges", "CC BY-SA 3.0", "test"))


def test_a_damaged_slice_is_a_typed_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mnist, "__file__", str(tmp_path / "mnist.py"))
    with pytest.raises(InputError, match="shipped"):
        load_slice()


def test_folder_zip_and_tar_give_the_same(folder: Path, tiny: dict[str, bytes], tmp_path: Path) -> None:
    expected = read_mnist(folder)
    assert expected.train_images.shape == (6, 28, 28) and expected.test_labels.shape == (3,)
    plain = {f"deep/down/{name[:-3].replace('-idx', '.idx')}": gzip.decompress(data) for name, data in tiny.items()}
    evil = {f"../../{name}": data for name, data in tiny.items()}
    sources = [make_zip(tmp_path / "a.zip", plain), make_zip(tmp_path / "b.zip", {**evil, "/etc/passwd": b"x", "readme.txt": b"x"}),
               make_tar(tmp_path / "a.tar.gz", evil), make_tar(tmp_path / "b.tar", plain, "w"), tmp_path / "tree"]
    (tmp_path / "tree" / "deep" / "down").mkdir(parents=True)
    for name, data in plain.items():
        (tmp_path / "tree" / name).write_bytes(data)
    before = sorted(tmp_path.rglob("*"))
    for source in sources:
        for a, b in zip(read_mnist(source), expected, strict=True):
            np.testing.assert_array_equal(a, b)
    assert sorted(tmp_path.rglob("*")) == before  # nothing was extracted
    assert holds_mnist(tmp_path / "tree") and not holds_mnist(tmp_path / "tree" / "absent")


def test_a_plain_file_is_preferred_to_its_gzip(folder: Path, tiny: dict[str, bytes]) -> None:
    name = "t10k-labels-idx1-ubyte"
    (folder / name).write_bytes(gzip.decompress(tiny[f"{name}.gz"]))
    (folder / f"{name}.gz").write_bytes(b"damaged")
    read_mnist(folder)


def test_another_md5_is_refused_unless_allowed(folder: Path) -> None:
    name = "t10k-labels-idx1-ubyte.gz"
    write_gz(folder / name, idx(np.array([1, 2, 3], np.uint8)))
    with pytest.raises(InputError, match="md5") as caught:
        read_mnist(folder)
    assert name in caught.value.where
    assert read_mnist(folder, allow_unofficial=True).test_labels.tolist() == [1, 2, 3]


@pytest.mark.parametrize(("data", "what"), [
    (b"", "length"), (b"\0\0\x08\x01\0\0", "length"), (idx(np.zeros((3, 1), np.uint8)), "magic number is 0x00000802"),
    (idx(np.zeros(4, np.uint8)), "size is 4, expected 3"), (idx(np.zeros(3, np.uint8))[:-1], "length is 10 bytes"),
    (idx(np.zeros(3, np.uint8)) + b"x", "length is 12 bytes"), (idx(np.full(3, 10, np.uint8)), "label is 10")])
@pytest.mark.parametrize("zipped", [True, False])
def test_wrong_contents(folder: Path, data: bytes, what: str, zipped: bool) -> None:
    path = folder / "t10k-labels-idx1-ubyte.gz"
    if zipped:
        write_gz(path, data)
    else:
        path.unlink()
        path = path.with_suffix("")
        path.write_bytes(data)
    with pytest.raises(InputError, match=what) as caught:
        read_mnist(folder, allow_unofficial=True)
    assert caught.value.where == str(path) and "expected" in caught.value.what


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b[:20] + bytes([b[20] ^ 255]) + b[21:], lambda b: b"", lambda b: b + b"x",
                                    lambda b: b"PK" + b, lambda b: b[:-6] + b"\0" + b[-5:]])
def test_damaged_gzip(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError) as caught:
        read_mnist(folder)
    assert caught.value.where == str(path)


def test_a_gzip_bomb_is_not_inflated(folder: Path) -> None:
    path = folder / "t10k-labels-idx1-ubyte.gz"
    write_gz(path, idx(np.zeros(3, np.uint8)) + bytes(10**7))
    with pytest.raises(InputError, match="length is 12 bytes or more"):
        read_mnist(folder)


def test_all_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    (folder / "train-images-idx3-ubyte.gz").unlink()
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(InputError, match="missing: train-images-idx3-ubyte, t10k-labels-idx1-ubyte") as caught:
        read_mnist(folder)
    assert "npm pack" in caught.value.fix
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"missing: train-images.*t10k-labels"):
        read_mnist(tmp_path / "empty")
    with pytest.raises(UsageError, match="does not exist"):
        read_mnist(tmp_path / "absent")


def test_two_data_sets_in_one_tree_are_ambiguous(folder: Path, tiny: dict[str, bytes]) -> None:
    (folder / "FashionMNIST").mkdir()
    for name, data in tiny.items():
        (folder / "FashionMNIST" / name).write_bytes(data)
    with pytest.raises(InputError, match="Several"):
        read_mnist(folder)
    (folder / "train-images-idx3-ubyte.gz").unlink()  # only one of the two is complete
    read_mnist(folder)


def test_damaged_archives(tiny: dict[str, bytes], tmp_path: Path) -> None:
    whole = make_zip(tmp_path / "a.zip", tiny).read_bytes()
    (tmp_path / "flipped.zip").write_bytes(whole[:200] + bytes([whole[200] ^ 255]) + whole[201:])
    (tmp_path / "locked.zip").write_bytes(whole.replace(b"PK\x03\x04\x14\x00\x00", b"PK\x03\x04\x14\x00\x01")
                                          .replace(b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01"))
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cut.tar.gz").write_bytes(make_tar(tmp_path / "a.tar.gz", tiny).read_bytes()[:3000])
    (tmp_path / "text.zip").write_text("hello")
    (tmp_path / "empty.tar").write_bytes(b"")
    for name in ("flipped.zip", "locked.zip", "cut.zip", "cut.tar.gz", "text.zip", "empty.tar"):
        with pytest.raises(InputError) as caught:
            read_mnist(tmp_path / name)
        assert name in caught.value.where


def test_members_that_are_no_files_are_passed_over(tiny: dict[str, bytes], tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "links.tar", "w") as archive:
        for name in tiny:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(info)
    with pytest.raises(InputError, match="missing"):
        read_mnist(tmp_path / "links.tar")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.sampled_from([(3,), (2, 2, 2)]), st.booleans())
def test_random_bytes_into_the_parser(data: bytes, shape: tuple[int, ...], header: bool) -> None:
    if header:
        data = idx(np.zeros(shape, np.uint8))[: 4 + 4 * len(shape)] + data
    try:
        array = parse_idx(data, shape, name="random")
    except InputError as error:
        assert error.where == "random"
    else:
        assert array.shape == shape and idx(array) == data


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=600), st.sampled_from(["", "PK\x03\x04", "\x1f\x8b\x08\0\0\0\0\0\0\x03", "BZh9", "\xfd7zXZ\0"]))
def test_random_bytes_as_a_source(tmp_path_factory: pytest.TempPathFactory, data: bytes, prefix: str) -> None:
    path = tmp_path_factory.getbasetemp() / "random.bin"
    path.write_bytes(prefix.encode("latin-1") + data)
    with pytest.raises(MetaSDFError):
        read_mnist(path)


def test_download(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    base = folder.as_uri()
    assert download_mnist(cache, urls=[(tmp_path / "absent").as_uri(), base + "/"]) == cache
    assert sorted(p.name for p in cache.iterdir()) == sorted(p.name for p in folder.iterdir())
    read_mnist(cache)
    download_mnist(cache, urls=[])  # all there: no address is needed
    (cache / "t10k-labels-idx1-ubyte.gz").write_bytes(b"damaged")
    download_mnist(cache, urls=[base])
    read_mnist(cache)


def test_download_failures(folder: Path, tmp_path: Path) -> None:
    write_gz(folder / "train-images-idx3-ubyte.gz", b"another file")
    for urls in ([folder.as_uri()], ["http://127.0.0.1:9/"], []):
        with pytest.raises(InputError, match="could not be downloaded") as caught:
            download_mnist(tmp_path / "cache", urls=urls)
        assert "--from" in caught.value.fix and "npm pack" in caught.value.fix and caught.value.cause
    assert not (tmp_path / "cache").exists()
    with pytest.raises(UsageError, match="https"):
        download_mnist(tmp_path / "cache", urls=["ftp://example.org"])


def test_download_that_cannot_be_saved(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in the way")
    with pytest.raises(UsageError, match="cannot write"):
        download_mnist(tmp_path / "cache", urls=[folder.as_uri()])


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "metasdf" / "mnist"
