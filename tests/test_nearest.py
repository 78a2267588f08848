"""The k-d tree, in a process whose processor flushes denormal numbers to zero, as our commands have it: a crash there would take pytest along."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from metasdf.geometry.nearest import TINY, kd_tree

FLUSHED = """
import numpy as np, torch
from metasdf.geometry.nearest import kd_tree
torch.set_flush_denormal(True)
x = np.random.default_rng(0).uniform(-1, 1, (5000, 3))
x[:1000, 0], x[1000:2000] = 0.0, (0.0, 0.3, -0.0)
assert (kd_tree(x).query(x)[0] == 0).mean() > 0.5
"""


def test_points_in_a_plane_through_the_origin_where_denormal_numbers_are_zero() -> None:
    done = subprocess.run([sys.executable, "-c", FLUSHED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr or f"signal {-done.returncode}"


def test_distances_are_those_of_the_points() -> None:
    x = np.random.default_rng(0).uniform(-1, 1, (300, 3))
    x[:100, 1], x[100:200, 2] = 0.0, 5e-324
    queries = np.random.default_rng(1).uniform(-1, 1, (50, 3))
    brute = np.linalg.norm(queries[:, None] - x, axis=2)
    distance, nearest = kd_tree(x).query(queries)
    np.testing.assert_array_equal(nearest, brute.argmin(1))
    np.testing.assert_allclose(distance, brute.min(1), rtol=1e-15)
    assert kd_tree(np.zeros((1, 3), np.int64)).query([TINY, TINY, TINY])[0] == 0
