"""The 2D data sets of the paper, made of MNIST's images: which images, in what order, in which split.

    mnist                            the official digits
    mnist-rotated                    mnist, each test digit turned about the centre by an angle of its own from [0, 360) degrees
    mnist-unseen                     digits 0-5 for train and val, digits 6-9 for test
    mnist-double, mnist-triple       MultiDigitMNIST: two digits on 64 x 64 pixels, three on 84 x 84
    mnist-composite                  mnist and mnist-double for train and val, mnist-triple for test

The last three also as NAME-clean. MultiDigitMNIST takes digits from the official training and test images alike, so that a digit of a test
image may have been seen in training; the clean ones take those of test from the test images and all others from the training images.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metasdf.data.mnist import MNIST
from metasdf.data.splits import SPLITS, keyed_order
from metasdf.errors import InputError, UsageError

Bytes = NDArray[np.uint8]
Rows = NDArray[np.int64]

NAMES = ("mnist", "mnist-rotated", "mnist-unseen", "mnist-double", "mnist-triple", "mnist-composite",
         "mnist-double-clean", "mnist-triple-clean", "mnist-composite-clean")  # fmt: skip
VALIDATION = 1000  # supplement, section 2.2.1
TEST = 1000  # images of several digits; the same section, for three
TRAIN = 30_000  # of each kind where there are images of several digits: a departure from the paper, which has 59,000 and 64,000
UNSEEN = 6  # the first digit that training does not see


class Images(Protocol):
    """Images that need not exist before they are asked for: a slice of them is (k, H, W) uint8, bright on black."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Bytes: ...


class Part(NamedTuple):
    """Images that follow one another in a store, their labels (n,), and the rows of each split, counted from the part's first."""

    name: str
    images: Images
    labels: NDArray[np.integer]
    splits: Mapping[str, Rows]


def digit_parts(name: str, mnist: MNIST, *, resolution: int, seed: int = 0, val: int | None = None, limit: int | None = None,
                count: int | None = None) -> tuple[Part, ...]:  # fmt: skip
    """The data set called `name`, as parts in the order of their rows.

    seed: of the choice of validation digits and of the angles. count: training images of each kind, at most (None: all, or 30,000 where there
    are images of several digits). val: validation images of each kind (None: 1,000). limit: the first images of each kind only, and a tenth
    of them for validation. Raises UsageError for a name that does not exist, and where nothing is left to train on.
    """
    if name not in NAMES:
        raise UsageError(f"There is no data set {name!r}", cause="a misspelt name", fix=f"one of: {', '.join(NAMES)}")
    kind, clean = name.removesuffix("-clean").removeprefix("mnist").strip("-"), name.endswith("-clean")
    if kind in LAYOUTS:
        return tuple(several_digits(mnist, LAYOUTS[kind], sizes=_sizes(count, val, limit), clean=clean))
    if kind == "composite":
        count = TRAIN if count is None else count
    train = _training_digits(mnist, range(UNSEEN if kind == "unseen" else 10), val=val, limit=limit, count=count, seed=seed)
    if kind == "composite":
        sizes = _sizes(count, val, limit)
        return (train, *several_digits(mnist, LAYOUTS["double"], sizes=sizes | {"test": 0}, clean=clean),
                *several_digits(mnist, LAYOUTS["triple"], sizes={"test": sizes["test"]}, clean=clean))  # fmt: skip
    rows = np.flatnonzero(mnist.test_labels >= (UNSEEN if kind == "unseen" else 0))[:limit]
    images: Images = mnist.test_images[rows]
    if kind == "rotated":
        images = Rotated(mnist.test_images[rows], angles(len(rows), seed=seed), resolution=resolution)
    return train, Part("test", images, mnist.test_labels[rows], {"test": np.arange(len(rows))})


def joined_splits(parts: Sequence[Part]) -> dict[str, Rows]:
    """Rows of each split over all parts. Where several parts share one, they take turns, so that the first rows are a fair sample."""
    firsts = np.cumsum([0, *(len(part.images) for part in parts)])
    splits = {}
    for split in SPLITS:
        rows = [first + part.splits.get(split, np.zeros(0, np.int64)) for first, part in zip(firsts, parts, strict=False)]
        places = [(np.arange(len(each)) + 0.5) / len(each) for each in rows]
        splits[split] = np.concatenate(rows)[np.argsort(np.concatenate(places), kind="stable")]
    return splits


def _training_digits(mnist: MNIST, digits: Sequence[int], *, val: int | None, limit: int | None, count: int | None, seed: int) -> Part:
    """Official training images in official order; which are for validation, and which are left out, is decided by their number and the seed."""
    rows = np.flatnonzero(np.isin(mnist.train_labels, digits))[:limit]
    val = _validation(val, limit, len(rows))
    if not 0 <= val < len(rows):
        raise UsageError(f"val={val} leaves no digit to train on", where=f"{len(rows)} training images", fix="use a smaller val")
    order = keyed_order([f"train/{row}" for row in rows], seed)[: None if count is None else val + count]
    chosen = np.sort(order)
    splits = {"val": np.searchsorted(chosen, np.sort(order[:val])), "train": np.searchsorted(chosen, np.sort(order[val:]))}
    return Part("train", mnist.train_images[rows[chosen]], mnist.train_labels[rows[chosen]], splits)


def _sizes(count: int | None, val: int | None, limit: int | None) -> dict[str, int]:
    """Of images of several digits."""
    most = sys.maxsize if limit is None else limit
    train = min(TRAIN if count is None else count, most)
    return {"train": train, "val": _validation(val, limit, train), "test": min(TEST, most)}


def _validation(val: int | None, limit: int | None, n: int) -> int:
    if val is not None:
        return val
    return VALIDATION if limit is None else max(1, n // 10)


# -- rotated digits ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rotated:
    """Images (n, H, W), each made `resolution` pixels wide, then turned anticlockwise about its centre by its angle in degrees; bilinear.

    In this order the shape is the upright one, turned. Turned as 28 x 28 pixels, thin strokes would fall below the threshold.
    """

    images: Bytes
    angles: NDArray[np.float64]
    resolution: int

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice, /) -> Bytes:
        size = (self.resolution, self.resolution)
        upright = [Image.fromarray(image).resize(size, Image.Resampling.BILINEAR) for image in self.images[rows]]
        return np.stack([np.asarray(image.rotate(angle, Image.Resampling.BILINEAR))
                         for image, angle in zip(upright, self.angles[rows].tolist(), strict=True)])  # fmt: skip


def angles(n: int, *, seed: int) -> NDArray[np.float64]:
    """Degrees from [0, 360), (n,); each depends on the seed and its own number only, in any version of any library."""
    keys = [hashlib.sha256(f"{seed}/angle/{k}".encode()).digest() for k in range(n)]
    return np.array([int.from_bytes(key[:6]) * 360 / 2**48 for key in keys])  # 48 bits: a product that float64 holds


# -- several digits in one image -----------------------------------------------------------------------------------------------------------

PROTOCOL_SEED = 123
PER_CLASS = 1000
SHARES = (64, 16)  # percent of the classes for train and val; test has the rest
PIXELS = 28


class Layout(NamedTuple):
    """Images `side` pixels wide and high, in which each of n digits has a column of its own."""

    name: str
    n: int
    side: int


LAYOUTS = {layout.name: layout for layout in (Layout("double", 2, 64), Layout("triple", 3, 84))}


@dataclass(frozen=True)
class SideBySide:
    """Images (m, side, side): digit j of image i is pool[chosen[i, j]], pasted on black with its corner at row top[i, j], column left[i, j]."""

    pool: Bytes
    side: int
    chosen: Rows
    top: Rows
    left: Rows

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, rows: slice, /) -> Bytes:
        chosen, top, left = self.chosen[rows], self.top[rows], self.left[rows]
        images = np.zeros((len(chosen), self.side, self.side), np.uint8)
        for i, j in np.ndindex(chosen.shape):
            images[i, top[i, j] : top[i, j] + PIXELS, left[i, j] : left[i, j] + PIXELS] = self.pool[chosen[i, j]]
        return images


def several_digits(mnist: MNIST, layout: Layout, *, sizes: Mapping[str, int], clean: bool = False,
                   per_class: int = PER_CLASS) -> Iterator[Part]:  # fmt: skip
    """MultiDigitMNIST by its published protocol, draw by draw; of each split named in `sizes`, at most so many images.

    A class is a number of n digits, its label. Numbers are drawn one after the other, so all of them are drawn, but only the images that are
    kept cost more than that. They are spread evenly: the first image of every class, then the second, and so on. No order of
    images is better than another, as each is drawn independently of those before it.
    """
    pool, labels = np.concatenate([mnist.train_images, mnist.test_images]), np.concatenate([mnist.train_labels, mnist.test_labels])
    classes = np.arange(10**layout.n)
    _legacy().shuffle(classes)
    rng = _legacy()
    lattice = [layout.side - PIXELS] * layout.n + [max(1, layout.side // layout.n - PIXELS)] * layout.n  # below 1 draws nothing, as published
    columns = np.arange(layout.n) * layout.side // layout.n
    for split, members in zip(SPLITS, np.split(classes, np.cumsum(SHARES) * len(classes) // 100), strict=True):
        candidates = _rows_of_digits(labels, _clean_part(split, len(mnist.train_labels)) if clean else slice(None))
        placed = np.empty((min(sizes.get(split, 0), len(members) * per_class), 3, layout.n), np.int64)
        for j, digits in enumerate(members[:, None] // 10 ** np.arange(layout.n)[::-1] % 10):
            own = [candidates[digit] for digit in digits]
            drawn = rng.randint(0, [*map(len, own), *lattice], (per_class, 3 * layout.n)).reshape(per_class, 3, layout.n)
            mine = placed[j :: len(members)]
            mine[:] = drawn[: len(mine)]
            mine[:, 0] = np.stack([rows[picks] for rows, picks in zip(own, mine[:, 0].T, strict=True)], -1)
        if len(placed):
            images = SideBySide(pool, layout.side, placed[:, 0], placed[:, 1], columns + placed[:, 2])
            yield Part(f"{layout.name}-{split}", images, np.resize(members, len(placed)), {split: np.arange(len(placed))})


def _legacy() -> np.random.RandomState:
    return np.random.RandomState(PROTOCOL_SEED)  # the protocol's own; NumPy never changes its stream


def _clean_part(split: str, n_train: int) -> slice:
    return slice(n_train, None) if split == "test" else slice(n_train)


def _rows_of_digits(labels: NDArray[np.uint8], official: slice) -> list[Rows]:
    """Where each of the ten digits is, ascending, in a part of the pool. Raises InputError for a digit that is nowhere."""
    rows = [np.flatnonzero(labels[official] == digit) + (official.start or 0) for digit in range(10)]
    for digit, found in enumerate(rows):
        if not len(found):
            raise InputError(f"There is no digit {digit} to put into an image", where="the MNIST source", cause="a data set with fewer classes",
                             fix="use MNIST, or a data set of its form with ten classes")  # fmt: skip
    return rows
