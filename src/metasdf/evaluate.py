"""Errors of a conditioner on whole shapes: MSE, MAE and misclassified sign after each inner step (docs/metrics.md)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from metasdf.conditioning.base import Conditioner
from metasdf.data.loader import Loader
from metasdf.data.store import Store
from metasdf.fields import field
from metasdf.heads import Head
from metasdf.prior import trajectory
from metasdf.tasks import ContextRule


class GridErrors(NamedTuple):
    """Means over shapes, one value per inner step (the first is the initialisation), in field units; `shapes` holds each shape's own MSE."""

    mse: list[float]
    mae: list[float]
    misclassified: list[float]  # percent of grid points whose sign is wrong
    n: int
    failed: int
    shapes: NDArray[np.float64]


@torch.no_grad()
def grid_errors(
    model: Conditioner, head: Head, store: Store, *, indices: NDArray[np.int64], rule: ContextRule, n_context: int, seed: int,
    device: torch.device, batch: int = 50, steps: int | None = None,
) -> GridErrors:  # fmt: skip
    """Fit each shape to a context drawn by `rule` (keyed by seed) and compare with its SDF at every grid point.

    A shape whose fitted field is not finite counts as failed; the means are then over the others, and `failed` says so.
    """
    loader = Loader(store, indices=indices, rule=rule, n_context=n_context, n_query=0, batch=batch, seed=seed)
    grid = torch.from_numpy(loader.shapes.grid).to(device)
    rows = []
    for start in range(0, len(indices), batch):
        part = indices[start : start + batch]
        context = loader.tasks(part).context.to(device)
        truth = torch.from_numpy(np.stack([loader.shapes[int(i)].s for i in part])).to(device)
        x = grid.expand(len(part), -1, -1)
        errors = []
        for params in trajectory(model, context, steps=steps):
            s = head.to_sdf(field(params, x, model.spec))
            e = (s - truth).double()
            errors.append(torch.stack((e.square().mean((1, 2)), e.abs().mean((1, 2)), ((s < 0) != (truth < 0)).double().mean((1, 2)) * 100)))
        rows.append(torch.stack(errors).cpu().numpy())  # (steps + 1, 3, batch)
    values = np.concatenate(rows, -1)
    good = np.isfinite(values[-1]).all(0)
    means = values[..., good].mean(-1) if good.any() else np.full(values.shape[:2], np.nan)
    return GridErrors(*(means[:, k].tolist() for k in range(3)), n=int(good.sum()), failed=int((~good).sum()), shapes=values[-1, 0])
