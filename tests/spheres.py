"""A 3D data set whose distances are known exactly: spheres of several sizes, in two categories."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from metasdf.data.shape import PICTURE, Shape, encode, pack_views
from metasdf.data.store import MESHES, Store, StoreWriter

CENTRE = np.array([0.1, -0.05, 0.0])


def radius(index: int) -> float:
    return 0.3 + 0.05 * index


def distance(index: int, x: np.ndarray) -> np.ndarray:
    return np.linalg.norm(x - CENTRE, axis=-1) - radius(index)


def write_spheres(
    path: Path, *, shapes: int = 6, samples: int = 300, surface: int = 200, views: int = 2, categories: tuple[str, str] = ("balls", "marbles")
) -> Store:
    """Category "balls", but for the last shape, which is the only of "marbles". Every view sees the side x > centre alone. Without pictures."""
    files = path.parent / f"{path.name}-files"
    files.mkdir(parents=True)
    facts = []
    with StoreWriter(path, kind=MESHES, request={}, meta={}) as writer:
        for index in range(shapes):
            rng = np.random.default_rng(index)
            x = rng.uniform(-1, 1, (samples, 3))
            normals = rng.standard_normal((surface, 3))
            normals /= np.linalg.norm(normals, axis=1, keepdims=True)
            rows = np.concatenate((CENTRE + radius(index) * normals, normals), 1, dtype=np.float32)
            seen = rows[rows[:, 3] > 0]
            facts.append({"name": f"sphere{index}", "category": categories[index == shapes - 1]})
            known = np.column_stack((x, distance(index, x))).astype(np.float32)
            arrays = {"samples": known, "volume": known[::-1].copy(), "surface": rows, **pack_views([seen] * views),
                      "picture": np.zeros((0, PICTURE, 3), np.uint8)}  # fmt: skip
            file = files / f"{index:08x}.safetensors"
            file.write_bytes(encode(Shape(arrays, facts[-1])))
            writer.link(file)
        writer.meta["shapes"] = facts
        writer.add("frames", np.tile([0.0, 0, 0, 1], (shapes, 1)))
        writer.splits = {"train": np.arange(shapes), "val": np.arange(2), "test": np.arange(1, shapes)}
    return Store.open(path)
