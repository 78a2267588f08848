"""A robot has seen a table as bare points: how far is its gripper from it, and which way is out?

    python examples/robot_query.py

Its gripper, a ball, is to move along a straight path that passes too low over the table. Every waypoint that is too close is pushed along the
gradient of the learned signed distance function until it is clear, all in batches; the true mesh says in the end how good that was.
"""

from __future__ import annotations

import sys

import numpy as np

import metasdf
from metasdf.demo3d import NAME, example_table
from metasdf.geometry.sampling import surface_points
from metasdf.geometry.signed import MeshSDF

RADIUS, MARGIN = 5.0, 1.0  # of the gripper, and what is to be kept free around it; centimetres, as the table


def push_out(sdf: metasdf.SDF, path: np.ndarray, *, clear: float, steps: int = 20) -> np.ndarray:
    """Waypoints (N, 3) moved until each is at least `clear` away from the surface, as far as `steps` pushes bring them."""
    path = path.copy()
    for _ in range(steps):
        distance, gradient = sdf.value_and_grad(path)
        short = clear - distance
        if (short <= 0).all():
            break
        uphill = gradient / np.maximum(np.linalg.norm(gradient, axis=1, keepdims=True), 1e-6)
        path += np.where(short > 0, short, 0.0)[:, None] * uphill
    return path


def main(prior: metasdf.Prior | None = None) -> tuple[float, float]:
    table = example_table()
    points = surface_points(table, 2048, rng=np.random.default_rng(0)).points
    sdf = (prior or metasdf.load(NAME)).adapt(points)

    low, high = points.min(0), points.max(0)
    height = high[1] + RADIUS / 2
    start, end = (low + (high - low) * (side, 0, 0.5) for side in (-0.2, 1.2))
    straight = np.linspace(start, end, 60)
    straight[:, 1] = height
    bent = push_out(sdf, straight, clear=RADIUS + MARGIN)

    true = MeshSDF(table)
    before, after = (float((true(path) - RADIUS).min()) for path in (straight, bent))
    print(f"straight path: the gripper's least clearance is {sdf(straight).min() - RADIUS:.1f} cm by the field, {before:.1f} cm in truth")
    print(f"pushed out:    {sdf(bent).min() - RADIUS:.1f} cm by the field, {after:.1f} cm in truth; no waypoint moved more than "
          f"{np.linalg.norm(bent - straight, axis=1).max():.1f} cm")  # fmt: skip
    return before, after


if __name__ == "__main__":
    sys.exit(main()[1] < 0)
