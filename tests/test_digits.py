"""The data sets made of MNIST's digits: the published protocol against a literal twin, splits, and what no test digit may be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from metasdf.cli import cli
from metasdf.data import digits as digits_module
from metasdf.data import prepare as prepare_module
from metasdf.data.digits import LAYOUTS, NAMES, Layout, Part, Rotated, SideBySide, angles, digit_parts, joined_splits, several_digits
from metasdf.data.mnist import MNIST, load_slice
from metasdf.data.prepare import prepare, prepare_mnist
from metasdf.data.show import data_set_sheet
from metasdf.data.splits import SPLITS
from metasdf.data.store import MANIFEST, Store
from metasdf.errors import InputError, UsageError
from metasdf.geometry.image import mask_from_image, sdf_from_mask

ALL = dict.fromkeys(SPLITS, 10**9)


def noise(rng: np.random.Generator, n: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images that are all different, of all ten classes in any order."""
    return rng.integers(0, 256, (n, 28, 28), dtype=np.uint8), rng.permutation(np.arange(n) % 10).astype(np.uint8)


@pytest.fixture(scope="module")
def mnist() -> MNIST:
    rng = np.random.default_rng(0)
    return MNIST(*noise(rng, 70), *noise(rng, 40))


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MNIST:
    """The shipped digits, six of each class for training and four for test; they are what reading any source gives."""
    images, labels, _ = load_slice()
    train = np.arange(100) % 10 < 6
    digits = MNIST(images[train], labels[train].astype(np.uint8), images[~train], labels[~train].astype(np.uint8))
    monkeypatch.setattr(prepare_module, "read_mnist", lambda source, allow_unofficial=False: digits)
    monkeypatch.setattr(prepare_module, "download_mnist", lambda: tmp_path)
    monkeypatch.setattr(digits_module, "VALIDATION", 3)
    monkeypatch.setattr(digits_module, "TRAIN", 20)
    monkeypatch.setattr(digits_module, "TEST", 9)
    return digits


# -- MultiDigitMNIST -----------------------------------------------------------------------------------------------------------------------


def published(mnist: MNIST, layout: Layout, per_class: int) -> dict[str, list[list[tuple[int, NDArray[np.uint8]]]]]:
    """All images of all splits, in the order of the protocol: for each split, for each class, (label, image). One draw after the other."""
    images = np.concatenate([mnist.train_images, mnist.test_images])
    labels = [*mnist.train_labels.tolist(), *mnist.test_labels.tolist()]
    where = [[row for row, label in enumerate(labels) if label == digit] for digit in range(10)]
    classes = list(range(10**layout.n))
    np.random.RandomState(123).shuffle(classes)
    rng = np.random.RandomState(123)
    first, second = round(0.64 * len(classes)), round(0.80 * len(classes))
    made: dict[str, list[list[tuple[int, NDArray[np.uint8]]]]] = {}
    for split, members in (("train", classes[:first]), ("val", classes[first:second]), ("test", classes[second:])):
        made[split] = []
        for number in members:
            made[split].append([])
            for _ in range(per_class):
                chosen = [images[rng.choice(where[int(letter)])] for letter in str(number).zfill(layout.n)]
                down = rng.randint(layout.side - 28, size=layout.n)
                free = layout.side // layout.n - 28
                right = rng.randint(free, size=layout.n) if free > 0 else [0] * layout.n
                image = np.zeros((layout.side, layout.side), np.uint8)
                for j, digit in enumerate(chosen):
                    left = j * layout.side // layout.n + right[j]
                    image[down[j] : down[j] + 28, left : left + 28] = digit
                made[split][-1].append((number, image))
    return made


@pytest.mark.parametrize(("layout", "per_class"), [(LAYOUTS["double"], 4), (LAYOUTS["triple"], 2), (Layout("one", 1, 31), 7)], ids=lambda x: str(x))
def test_the_protocol_draw_by_draw(mnist: MNIST, layout: Layout, per_class: int) -> None:
    made = published(mnist, layout, per_class)
    parts = list(several_digits(mnist, layout, sizes=ALL, per_class=per_class))
    assert [part.name for part in parts] == [f"{layout.name}-{split}" for split in SPLITS]
    for split, part in zip(SPLITS, parts, strict=True):
        turns = [one for turn in zip(*made[split], strict=True) for one in turn]  # the first image of every class, then the second
        np.testing.assert_array_equal(part.labels, [label for label, _ in turns])
        np.testing.assert_array_equal(part.images[:], np.stack([image for _, image in turns]))
        assert len(part.images) == len(turns) and {key: rows.tolist() for key, rows in part.splits.items()} == {split: [*range(len(turns))]}


def test_classes_of_the_published_sets(mnist: MNIST) -> None:
    """Fixed numbers: no version of NumPy may change them."""
    parts = several_digits(mnist, LAYOUTS["double"], sizes=ALL, per_class=1)
    assert [part.labels[:5].tolist() for part in parts] == CLASSES_OF_DOUBLE
    assert [len(part.images) for part in several_digits(mnist, LAYOUTS["triple"], sizes=ALL, per_class=1)] == [640, 160, 200]


CLASSES_OF_DOUBLE = [[8, 70, 82, 28, 63], [22, 10, 58, 71, 64], [2, 67, 55, 49, 68]]


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 150), st.integers(0, 40), st.integers(0, 50), st.booleans())
def test_fewer_images_are_the_first_of_more(train: int, val: int, test: int, clean: bool) -> None:
    rng = np.random.default_rng(1)
    mnist = MNIST(*noise(rng, 70), *noise(rng, 40))
    whole = {part.name: part for part in several_digits(mnist, LAYOUTS["double"], sizes=ALL, clean=clean, per_class=3)}
    some = list(several_digits(mnist, LAYOUTS["double"], sizes={"train": train, "val": val, "test": test}, clean=clean, per_class=3))
    assert [part.name for part in some] == [f"double-{split}" for split, n in (("train", train), ("val", val), ("test", test)) if n]
    for part in some:
        np.testing.assert_array_equal(part.images[:], whole[part.name].images[: len(part.images)])
        np.testing.assert_array_equal(part.labels, whole[part.name].labels[: len(part.labels)])
        classes = len(np.unique(whole[part.name].labels))
        per_class = np.unique(part.labels, return_counts=True)[1]
        assert len(per_class) == min(classes, len(part.labels)) and np.ptp(per_class) <= 1  # spread evenly


@pytest.mark.parametrize("name", ["double", "triple"])
@pytest.mark.parametrize("clean", [False, True])
def test_a_clean_test_has_no_training_digit(mnist: MNIST, name: str, clean: bool) -> None:
    labels = np.concatenate([mnist.train_labels, mnist.test_labels])
    parts = list(several_digits(mnist, LAYOUTS[name], sizes=ALL, clean=clean, per_class=2))
    assert len(parts) == 3
    for part in parts:
        assert isinstance(part.images, SideBySide)
        chosen = part.images.chosen
        of_test = chosen >= len(mnist.train_labels)
        assert of_test.all() == (clean and part.name.endswith("test")) and of_test.any() == (not clean or part.name.endswith("test"))
        word = labels[chosen].astype(int) @ 10 ** np.arange(chosen.shape[1])[::-1]
        np.testing.assert_array_equal(word, part.labels)  # each digit is of the class that its place in the number says


def test_a_class_without_images_is_an_error(mnist: MNIST) -> None:
    few = mnist._replace(train_labels=mnist.train_labels % 9, test_labels=mnist.test_labels % 9)
    with pytest.raises(InputError, match="no digit 9"):
        list(several_digits(few, LAYOUTS["double"], sizes=ALL))


# -- rotation ------------------------------------------------------------------------------------------------------------------------------


def test_no_turn_and_quarter_turns(source: MNIST) -> None:
    images = source.test_images[:4]
    upright = [np.asarray(Image.fromarray(image).resize((64, 64), Image.Resampling.BILINEAR)) for image in images]
    for turns in range(4):
        turned = Rotated(images, np.full(4, 90.0 * turns), 64)
        np.testing.assert_array_equal(turned[1:3], [np.rot90(image, turns) for image in upright[1:3]])
    for image, turned_image in zip(images, Rotated(images, np.zeros(4), 64)[:], strict=True):
        np.testing.assert_array_equal(mask_from_image(turned_image, 64), mask_from_image(image, 64))


@pytest.mark.parametrize("angle", [10.0, 77.0, 200.0, 333.0])
def test_a_disc_goes_where_the_angle_says(angle: float) -> None:
    y, x = np.mgrid[:64, :64] - 31.5
    disc = np.rint(255 * np.clip(8.5 - np.hypot(x - 12, y + 9), 0, 1)).astype(np.uint8)  # radius 8, a soft edge
    mask = mask_from_image(Rotated(disc[None], np.array([angle]), 64)[:][0], 64)
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    np.testing.assert_allclose((x[mask].mean(), y[mask].mean()), (12 * c - 9 * s, -12 * s - 9 * c), atol=0.1)  # anticlockwise, y points down
    assert abs(mask.sum() - np.pi * 64) < 5  # a tenth of the pixels along the edge


def test_angles_depend_on_the_seed_and_the_number() -> None:
    drawn = angles(2000, seed=0)
    np.testing.assert_array_equal(drawn[:7], angles(7, seed=0))
    assert (drawn >= 0).all() and (drawn < 360).all() and not (drawn[:100] == angles(100, seed=1)).any()
    assert np.bincount((drawn // 36).astype(int)).min() > 150 and abs(drawn.mean() - 180) < 3 * 360 / np.sqrt(12 * 2000)


# -- the data sets -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_parts_and_splits_add_up(source: MNIST, name: str) -> None:
    parts = digit_parts(name, source, resolution=32)
    splits = joined_splits(parts)
    total = sum(len(part.images) for part in parts)
    assert all(len(part.labels) == len(part.images) for part in parts)
    assert sorted(np.concatenate(list(splits.values())).tolist()) == list(range(total))
    sizes = {split: len(rows) for split, rows in splits.items()}
    expected = {"mnist": (57, 3, 40), "mnist-rotated": (57, 3, 40), "mnist-unseen": (33, 3, 16), "mnist-double": (20, 3, 9),
                "mnist-triple": (20, 3, 9), "mnist-composite": (40, 6, 9)}  # fmt: skip
    assert tuple(sizes[split] for split in SPLITS) == expected[name.removesuffix("-clean")]
    assert [len(rows) for rows in joined_splits(digit_parts(name, source, resolution=32, count=5)).values()][:2] == \
        [10 if "composite" in name else 5, sizes["val"]]  # fmt: skip


def test_who_is_in_the_composite_set(source: MNIST) -> None:
    train, *others = digit_parts("mnist-composite", source, resolution=32)
    doubles, triples = digit_parts("mnist-double", source, resolution=32), digit_parts("mnist-triple", source, resolution=32)
    assert [part.name for part in (train, *others)] == ["train", "double-train", "double-val", "triple-test"]
    for part, same in zip(others, (*doubles[:2], triples[2]), strict=True):
        np.testing.assert_array_equal(part.images[:], same.images[:])
    whole = digit_parts("mnist", source, resolution=32)[0]
    kept = [row for row, image in enumerate(whole.images[:]) if any((image == other).all() for other in train.images[:])]
    assert len(kept) == 23 == len(train.images) and set(whole.splits["val"]) <= set(kept)  # the same digits validate


def test_who_is_unseen(source: MNIST) -> None:
    train, test = digit_parts("mnist-unseen", source, resolution=32)
    assert set(train.labels.tolist()) == {0, 1, 2, 3, 4, 5} and set(test.labels.tolist()) == {6, 7, 8, 9}
    np.testing.assert_array_equal(train.images[:], source.train_images[source.train_labels < 6])


def test_kinds_take_turns_in_a_split() -> None:
    images = np.zeros((4, 28, 28), np.uint8)
    parts = [Part("a", images, np.zeros(4, int), {"train": np.arange(4)}), Part("b", images[:2], np.zeros(2, int), {"train": np.arange(2)})]
    assert joined_splits(parts)["train"].tolist() == [0, 4, 1, 2, 5, 3] and joined_splits(parts)["test"].tolist() == []


@pytest.mark.parametrize("name", ["mnist-composite-clean", "mnist-rotated"])
def test_one_worker_and_two_write_the_same_bytes(source: MNIST, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(prepare_module, "CHUNK_DIGITS", 7)
    one, two = (prepare_mnist("any", tmp_path / str(workers), name=name, limit=10, workers=workers, progress=False) for workers in (1, 2))
    assert [p.read_bytes() for p in sorted(one.path.iterdir())] == [p.read_bytes() for p in sorted(two.path.iterdir())]
    parts = digit_parts(name, source, resolution=64, limit=10)
    images = [image for part in parts for image in part.images[:]]
    assert len(one) == len(images) and one.meta["source"] == name
    for row in (0, 9, 10, len(images) - 1):
        np.testing.assert_array_equal(one.arrays["sdf"][row], sdf_from_mask(mask_from_image(images[row], 64)))
    np.testing.assert_array_equal(one.arrays["labels"], np.concatenate([part.labels for part in parts]))
    ends = np.cumsum([len(part.images) for part in parts]).tolist()
    assert one.meta["rows"] == {part.name: [end - len(part.images), end] for part, end in zip(parts, ends, strict=True)}


def test_a_store_is_found_again_and_not_mistaken(source: MNIST, tmp_path: Path) -> None:
    out = tmp_path / "data"
    store = prepare("mnist-unseen", out, resolution=32, limit=10, workers=1, progress=False)
    written = (out / MANIFEST).stat().st_mtime_ns
    assert prepare_mnist("any", out, name="mnist-unseen", resolution=32, limit=10, progress=False).fingerprint == store.fingerprint
    assert (out / MANIFEST).stat().st_mtime_ns == written
    for change in ({"name": "mnist-rotated"}, {"count": 4}):
        with pytest.raises(UsageError, match="Another data set") as caught:
            prepare_mnist("any", out, **{"name": "mnist-unseen", "resolution": 32, "limit": 10, "progress": False} | change)  # type: ignore[arg-type]
        assert next(iter(change)) in caught.value.cause
    with pytest.raises(UsageError, match="no data set 'mnist-quadruple'"):
        prepare_mnist("any", tmp_path / "other", name="mnist-quadruple", progress=False)
    with pytest.raises(UsageError, match="count must be at least 1"):
        prepare_mnist("any", tmp_path / "other", count=0, progress=False)


def test_the_request_for_plain_mnist_is_as_it_was(source: MNIST, tmp_path: Path) -> None:
    """Stores that were made before there were others are found again."""
    store = prepare_mnist("any", tmp_path / "data", resolution=32, limit=10, workers=1, progress=False)
    assert set(store.request) == {"source", "official", "resolution", "threshold", "contours", "seed", "val", "limit"}


def test_an_unofficial_image_without_a_shape_is_dropped(source: MNIST, tmp_path: Path) -> None:
    source.train_images[[2, 5]] = 0
    source.test_images[0] = 255
    with pytest.raises(InputError, match="no shape"):
        prepare_mnist("any", tmp_path / "data", resolution=32, val=10, workers=1, progress=False)
    store = prepare_mnist("any", tmp_path / "data", resolution=32, val=10, workers=1, allow_unofficial=True, progress=False)
    assert (store.meta["found"], store.meta["kept"], store.meta["dropped_count"], len(store)) == (100, 97, 3, 97)
    assert [entry["name"] for entry in store.meta["dropped"]] == ["image 2", "image 5", "image 60"]
    assert store.meta["rows"] == {"train": [0, 58], "test": [58, 97]}
    kept = np.setdiff1d(np.arange(100), [2, 5, 60])
    np.testing.assert_array_equal(store.arrays["labels"], np.concatenate([source.train_labels, source.test_labels])[kept])
    whole = joined_splits(digit_parts("mnist", source, resolution=32, val=10))
    for split in SPLITS:
        assert kept[store.split(split)].tolist() == [row for row in whole[split] if row in kept]


def test_from_the_command_line_and_a_picture(source: MNIST, tmp_path: Path) -> None:
    def run(*arguments: object) -> str:
        result = CliRunner().invoke(cli, [str(a) for a in arguments])
        assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
        return result.stdout

    data, sheet = tmp_path / "data", tmp_path / "sheet.png"
    said = run("prepare", "mnist-composite", "--from", tmp_path, "-o", data, "--count", 4, "--workers", 1)
    assert said == f"{data}: 23 found = 23 kept + 0 dropped; train 8, val 6, test 9\n"
    run("datasets", "show", data, "-o", sheet, "--shapes", 7)
    with Image.open(sheet) as image:
        assert image.size[0] > 6 * 192 and image.size[1] > 2 * 192  # six in a row
    store = Store.open(data)
    assert data_set_sheet(store, shapes=1, split="test").shape[0] > 192
