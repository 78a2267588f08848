"""Which shapes are for training, validation and test: by shares and a seed, or as split files say."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metasdf.data.sources import SPLITS, read_split_file
from metasdf.errors import InputError, UsageError

Shares = tuple[float, float, float]


def keyed_order(names: Sequence[str], seed: int) -> NDArray[np.int64]:
    """A permutation of the names that depends on the seed and the names only, in any version of any library: by SHA-256 of both."""
    keys = [hashlib.sha256(f"{seed}/{name}".encode(errors="surrogateescape")).digest() for name in names]
    return np.array(sorted(range(len(names)), key=keys.__getitem__), dtype=np.int64)


def by_shares(
    names: Sequence[str], shares: Shares, *, seed: int, groups: Sequence[str] | None = None, families: Sequence[int] | NDArray[np.int64] | None = None
) -> dict[str, NDArray[np.int64]]:
    """Rows of train, val and test, ascending. With `groups` (a name for each row), each group is split on its own.

    families: rows of a group with the same number stay together, so that the shares are kept as far as that allows.
    """
    members = defaultdict(list)
    for row, group in enumerate(groups if groups is not None else [""] * len(names)):
        members[group].append(row)
    parts: list[list[int]] = [[], [], []]
    for rows in members.values():
        order = [rows[k] for k in keyed_order([names[row] for row in rows], seed)]
        train, val = share_counts(len(rows), shares)
        place: dict[int, int] = {}  # the part of a family: where its first shape falls
        for at, row in enumerate(order):
            part = int(at >= train) + int(at >= train + val)
            parts[part if families is None else place.setdefault(int(families[row]), part)].append(row)
    return {name: np.sort(np.array(part, np.int64)) for name, part in zip(SPLITS, parts, strict=True)}


def share_counts(n: int, shares: Shares) -> tuple[int, int]:
    """Shapes for train and val of n; val and test get at least one each if they have a share and there are three shapes."""
    least = 1 if n >= 3 else 0
    val, test = (max(int(n * share / sum(shares)), least if share else 0) for share in shares[1:])
    return n - val - test, val


def check_shares(shares: Shares) -> None:
    if len(shares) != 3 or not all(np.isfinite(share) and share >= 0 for share in shares) or not shares[0] > 0:
        raise UsageError("A split is three shares, train, val and test, none negative and some to train on", where=f"split={shares}",
                         fix="use split=(80, 10, 10)")  # fmt: skip


def split_of_file(path: str) -> str:
    """train of train.json, sv2_planes_train.json, planes-train.json; empty where the name does not say."""
    last = re.split(r"[_\-. ]", Path(path).stem)[-1]
    return last if last in SPLITS else ""


class SplitFiles:
    """Splits as files say: {name: split}, names being dataset/class/id or class/id."""

    def __init__(self, listed: dict[str, str]) -> None:
        self.listed = listed

    @classmethod
    def read(cls, files: Sequence[str]) -> SplitFiles:
        """Each is FILE or SPLIT=FILE. A file is DeepSDF's, {dataset: {class: [id]}}, of the split that is given or that its name ends with
        (..._train.json); or it holds all of them, {class: {split: [id]}}. Raises UsageError, InputError."""
        listed: dict[str, str] = {}
        for text in files:
            given, path = next(((name, text[len(name) + 1 :]) for name in SPLITS if text.startswith(f"{name}=")), ("", text))
            for key in read_split_file(path):
                split = given or (key.category if key.category in SPLITS else split_of_file(path))
                if split not in SPLITS:
                    raise UsageError("It is not said which split the file is for", where=path, fix=f"write --split-file train={path} (val=, test=)")
                name = f"{key.dataset}/{key.shape}" if key.category in SPLITS else "/".join(key)
                if listed.setdefault(name, split) != split:
                    raise InputError(f"{name} is in two splits", where=path, fix="each shape belongs to one")
        return cls(listed)

    @classmethod
    def of_request(cls, request: Any) -> SplitFiles | None:
        return cls(request) if isinstance(request, dict) else None

    def request(self) -> dict[str, str]:
        return self.listed

    def split_of(self, name: str) -> str | None:
        """Of a shape, whether it is called with its data set or the file does so."""
        return self.listed.get(name) or self._short.get(name)

    def missing(self, names: Collection[str]) -> list[str]:
        """What is listed and not there."""
        return sorted(name for name in self.listed if name not in names and name.partition("/")[2] not in names)

    def rows(self, names: Sequence[str]) -> dict[str, NDArray[np.int64]]:
        found = [self.split_of(name) for name in names]
        return {split: np.array([row for row, each in enumerate(found) if each == split], np.int64) for split in SPLITS}

    @cached_property
    def _short(self) -> dict[str, str]:
        return {name.partition("/")[2]: split for name, split in self.listed.items() if name.count("/") > 1}
