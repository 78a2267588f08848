"""Whether a shape is of the kind a prior knows: how far the fitted field is off where the shape was observed, beside what is usual.

Five gradient steps reach what the prior learned to reach. A table upside down, an aeroplane under a prior of tables, or a table made small by a stray
point are mostly left half way, and that shows where they were observed: no truth is needed. What is nearer to the prior's kind passes unseen.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metasdf.data.loader import shapes_of
from metasdf.data.store import Store
from metasdf.geometry.frame import identity
from metasdf.prior import SDF, Observed, Prior, load, shipped
from metasdf.tasks import moved

Floats = NDArray[np.float64]

UNUSUAL = 1.5  # times the usual 95th percentile: one shape in 344 of the right kind was beyond it (docs/scans.md)
FEWEST = 100  # points whose mean says something
AT_ONCE = 8  # shapes that are fitted together
KEY = "misfit"  # in a prior's card
_POINTS = 3  # what a random stream is for, beside the loader's


class Points(NamedTuple):
    """Points x (N, d) of a surface, or with signed distances s (N,)."""

    x: NDArray[np.floating]
    s: NDArray[np.floating] | None = None

    def rows(self, chosen: slice) -> Points:
        return Points(self.x[chosen], None if self.s is None else self.s[chosen])


def judged(points: Points, fitted: int) -> Points:
    """The points after the first `fitted`, to which the field was fitted; those first ones where fewer than FEWEST are left."""
    return points.rows(slice(fitted, None) if len(points.x) - fitted >= FEWEST else slice(fitted))


def misfit(sdf: SDF, points: Points) -> float:
    """Mean |sdf - s| over points in the user's units, s zero on the surface; in field units. Infinite where the field is not finite."""
    error = np.abs(sdf(points.x) - (0.0 if points.s is None else points.s)).mean() * sdf.frame.scale
    return float(error) if np.isfinite(error) else math.inf


def usual(prior: Prior, store: Store, rows: NDArray[np.int64], *, seed: int = 0) -> dict[str, Any]:
    """What a prior's card says of the misfit of shapes it knows, the given rows of a store: median and 95th percentile over n of them. Each is
    fitted to n_test points, and judged by as many others where there are so many."""
    shapes, e = shapes_of(store), prior.experiment
    dense, found = e.context == "dense", list[float]()
    for start in range(0, len(rows), AT_ONCE):
        known = []
        for row in rows[start : start + AT_ONCE]:
            rng = np.random.default_rng((seed, _POINTS, int(row)))
            drawn = {"samples": 2 * e.n_test, "points": 0} if dense else {"samples": 0, "points": 2 * e.n_test}
            shape = shapes.part(int(row), rng, view=e.context == "partial", **drawn)
            order = rng.permutation(len(shape.x if dense else shape.surface))[: 2 * e.n_test]
            if dense:
                known.append(Points(shape.x[order], shape.s[order, 0]))
            elif prior.needs_normals:
                assert shape.normals is not None  # training had them
                x, s = moved(rng, shape.surface[order], shape.normals[order])
                known.append(Points(x, s[:, 0]))
            else:
                known.append(Points(shape.surface[order]))
        sdfs = prior.fit([Observed(identity(prior.dim), *points.rows(slice(e.n_test))) for points in known])
        found += [misfit(sdf, judged(points, e.n_test)) for sdf, points in zip(sdfs, known, strict=True)]
    good = np.array([value for value in found if math.isfinite(value)])
    return {"median": float(np.median(good)), "p95": float(np.quantile(good, 0.95)), "n": len(good)} if len(good) else {}


def doubt(prior: Prior, sdf: SDF, points: Points, fitted: int, *, units: str = "units", causes: str = "") -> str | None:
    """A sentence where the misfit is more than UNUSUAL times what 95 of 100 shapes of the prior's kind keep to, and which shipped prior for the
    same kind of observations fits better, beside what is usual for it. None where all is well, and for priors whose card does not say what is.

    points: in the user's units; the field was fitted to the first `fitted` of them, and is judged by the others where there are so many. What was
    refined is judged as it was before.
    """
    chosen, sdf = judged(points, fitted), sdf.after(len(sdf.path) - 1)  # refined to its observations any shape looks familiar
    share = _share(prior, found := misfit(sdf, chosen))
    if share is None or share <= UNUSUAL:
        return None
    known, unit = prior.card[KEY], sdf.frame.scale
    own = "it was" if len(points.x) - fitted < FEWEST else "it was not"
    text = (f"this does not look like what {prior.name} knows: at {len(chosen.x):,} points {own} fitted to, the field is off by {found / unit:.3g} "
            f"{units} on average, where 95 of 100 shapes of its kind keep to {known['p95'] / unit:.3g} (median {known['median'] / unit:.3g}, "
            f"n {known['n']:,})")  # fmt: skip
    context = points.rows(slice(fitted))
    observed = Observed(sdf.pose, sdf.pose.to_field(context.x), None if context.s is None else context.s * unit)
    shares = [(_share_of(name, prior, observed, chosen), name) for name in shipped()]
    if better := [(found, name) for found, name in shares if found is not None and found < share]:
        text += f"; the prior {min(better)[1]} fits better"
    return f"{text}. Likely causes: {causes}" if causes else text


def _share(prior: Prior, found: float) -> float | None:
    """The misfit over the usual 95th percentile, if the card says that."""
    known = prior.card.get(KEY)
    return found / known["p95"] if known else None


def _share_of(name: str, prior: Prior, observed: Observed, points: Points) -> float | None:
    """The same of a shipped prior, if it takes such observations."""
    other = load(name)
    if other.dim != prior.dim or other.experiment.context != prior.experiment.context or not other.card.get(KEY):
        return None
    other.to(next(prior.parameters()).device)
    return _share(other, misfit(other.fit([observed])[0], points))
