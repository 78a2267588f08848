"""Stores in the layout of other programs."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metasdf.data.deepsdf import write_shape
from metasdf.data.shape import read_shape
from metasdf.data.sources import ShapeKey, check_key
from metasdf.data.store import Store
from metasdf.errors import UsageError
from metasdf.files import write_whole
from metasdf.geometry.frame import Frame


class Exported(NamedTuple):
    """How many shapes were written; the names of those that no split file names, since they have samples on one side of the surface only."""

    written: int
    one_sided: list[str]


def export_deepsdf(store: Store, out: Path, *, dataset: str) -> Exported:
    """Every shape as DeepSDF's processed files, and one split file for each split.

    DeepSDF's loader draws as many samples of `pos` as of `neg`, and fails where one of them is empty, in the midst of a training. So shapes with
    samples on one side only, as sheets have them, are written like all others, but no split file sends the loader to them.

    A shape called a/b/c becomes class a (its category where it has one folder or none), id b_c. Raises UsageError for other data sets,
    and as `files.write_whole`.
    """
    if "shapes" not in store.meta:
        raise UsageError(f"This data set holds {store.kind}, which has no such layout", where=store.path, fix="pass one that was made from meshes")
    keys = [key_of(facts["name"], facts["category"], dataset) for facts in store.meta["shapes"]]
    for key in keys:
        check_key(key, where=store.path)
    if repeated := [key for key, count in Counter(keys).items() if count > 1]:
        raise UsageError(f"Two shapes would be called {'/'.join(repeated[0])}", where=store.path, cause="a/b/c and a/b_c are one name there",
                         fix="rename one of them, and prepare the data set again")  # fmt: skip
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError("The output is not an empty folder", where=out, fix="choose another folder with -o")
    one_sided: set[int] = set()
    for row, key in enumerate(keys):
        shape = read_shape(store.item(row), "samples", "surface")
        frame = Frame(tuple(shape.facts["centre"]), shape.facts["scale"])
        samples, surface = shape.arrays["samples"], frame.from_field(shape.arrays["surface"][:, :3])
        if not 0 < np.count_nonzero(samples[:, 3] > 0) < len(samples):
            one_sided.add(row)
        write_shape(out, key, x=samples[:, :3], s=samples[:, 3], surface=surface, offset=-np.array(frame.centre), scale=frame.scale)
    for split, rows in store.splits.items():
        tree: dict[str, list[str]] = {}
        for row in (row for row in rows.tolist() if row not in one_sided):
            tree.setdefault(keys[row].category, []).append(keys[row].shape)
        write_whole(out / f"{dataset}_{split}.json", (json.dumps({dataset: tree}, indent=1) + "\n").encode())
    return Exported(len(keys), [store.meta["shapes"][row]["name"] for row in sorted(one_sided)])


def key_of(name: str, category: str, dataset: str) -> ShapeKey:
    folder, _, rest = name.partition("/")
    return ShapeKey(dataset, folder, rest.replace("/", "_")) if rest else ShapeKey(dataset, category or "shapes", name)
