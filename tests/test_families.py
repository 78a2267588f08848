"""Near-copies: found whatever they are called, kept in one split, and told where they are in two."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from spheres import write_spheres

from metasdf.data.families import NEAR, PROBES, descriptors, families, near_copies
from metasdf.data.shape import Shape, encode
from metasdf.data.splits import by_shares

NAMES = [f"shape{k}" for k in range(40)]


def write_ball(path: Path, radius: float, *, seed: int, points: int = 20_000) -> Path:
    x = np.random.default_rng(seed).standard_normal((points, 6))
    x[:, :3] *= radius / np.linalg.norm(x[:, :3], axis=1, keepdims=True)
    path.write_bytes(encode(Shape({"surface": x.astype(np.float32)}, {"name": path.stem})))
    return path


def test_descriptors_are_distances_to_the_surface(tmp_path: Path) -> None:
    """The closed form of a ball, to the gaps between 20,000 points; an unknown surface is near none, not even another one."""
    ball = write_ball(tmp_path / "ball.safetensors", 0.8, seed=0)
    none = [write_ball(tmp_path / f"none{k}.safetensors", 0.8, seed=k, points=0) for k in range(2)]
    found = descriptors([ball, *none])
    probes = np.random.default_rng(0).uniform(-1, 1, (PROBES, 3))
    np.testing.assert_allclose(found[0], np.abs(np.linalg.norm(probes, axis=1) - 0.8), atol=0.02)
    assert np.isinf(found[1:]).all() and len(set(families([ball, *none]).tolist())) == 3


def test_families_are_of_copies_and_of_their_copies(tmp_path: Path) -> None:
    """Concentric balls differ by their radii everywhere: 0.7 NEAR apart they are of one family, also at the ends of a chain; 2 NEAR apart not."""
    radii = [0.5, 0.5 + 0.7 * NEAR, 0.5 + 1.4 * NEAR, 0.5 + 3.4 * NEAR, 0.5]
    found = families([write_ball(tmp_path / f"{k}.safetensors", radius, seed=k) for k, radius in enumerate(radii)])
    assert found[0] == found[1] == found[2] == found[4] != found[3]


def test_copies_in_two_splits_are_named(tmp_path: Path) -> None:
    store = write_spheres(tmp_path / "spheres", surface=5000)  # each radius 0.05 apart: near-copies are the shapes themselves
    pairs = near_copies(store, np.array([0, 1, 2]), store, np.array([2, 3, 1]))
    assert sorted(pairs) == [("sphere1", "sphere1"), ("sphere2", "sphere2")]


@pytest.mark.parametrize("seed", range(5))
def test_families_stay_together(seed: int) -> None:
    """As many shapes as the shares say, to the size of a family; those without families as ever."""
    alone = by_shares(NAMES, (80, 10, 10), seed=seed)
    assert [len(rows) for rows in alone.values()] == [32, 4, 4]
    numbered = by_shares(NAMES, (80, 10, 10), seed=seed, families=range(40))
    assert all((numbered[split] == rows).all() for split, rows in alone.items())
    pairs = [k // 2 for k in range(40)]
    split = by_shares(NAMES, (80, 10, 10), seed=seed, families=pairs)
    assert sorted(np.concatenate(list(split.values())).tolist()) == list(range(40))
    groups = [{pairs[row] for row in rows} for rows in split.values()]
    assert not groups[0] & groups[1] and not groups[1] & groups[2] and not groups[0] & groups[2]
    assert len(split["train"]) >= 28
