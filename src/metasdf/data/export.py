"""Stores in the layout of other programs."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np

from metasdf.data.deepsdf import write_shape
from metasdf.data.shape import read_shape
from metasdf.data.sources import ShapeKey, check_key
from metasdf.data.store import Store
from metasdf.errors import UsageError
from metasdf.geometry.frame import Frame
from metasdf.geometry.io import write_whole


def export_deepsdf(store: Store, out: Path, *, dataset: str) -> int:
    """Every shape as DeepSDF's processed files, and one split file for each split. How many shapes were written.

    A shape called a/b/c becomes class a (its category where it has one folder or none), id b_c. Raises UsageError for other data sets,
    InputError where the disk is full.
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
    for row, key in enumerate(keys):
        shape = read_shape(store.item(row), "samples", "surface")
        frame = Frame(tuple(shape.facts["centre"]), shape.facts["scale"])
        samples, surface = shape.arrays["samples"], frame.from_field(shape.arrays["surface"][:, :3])
        write_shape(out, key, x=samples[:, :3], s=samples[:, 3], surface=surface, offset=-np.array(frame.centre), scale=frame.scale)
    for split, rows in store.splits.items():
        tree: dict[str, list[str]] = {}
        for row in rows:
            tree.setdefault(keys[row].category, []).append(keys[row].shape)
        write_whole(out / f"{dataset}_{split}.json", (json.dumps({dataset: tree}, indent=1) + "\n").encode())
    return len(keys)


def key_of(name: str, category: str, dataset: str) -> ShapeKey:
    folder, _, rest = name.partition("/")
    return ShapeKey(dataset, folder, rest.replace("/", "_")) if rest else ShapeKey(dataset, category or "shapes", name)
