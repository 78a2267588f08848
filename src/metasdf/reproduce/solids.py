"""Tables 3 and 4: surfaces of 3D shapes. Table 3: shapes of the category trained on: planes and tables (main paper, 3D experiments), chairs
(supplement, table 3). Table 4: priors of tables on benches (supplement, table 4)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metasdf.data.families import near_copies
from metasdf.data.loader import rows_of
from metasdf.data.meshes import merge, prepare_meshes
from metasdf.data.shape import Sampling
from metasdf.data.splits import SplitFiles
from metasdf.data.store import Store
from metasdf.errors import UsageError
from metasdf.metrics import PAPER, Convention
from metasdf.prior import Prior
from metasdf.reproduce.plan import REFINED, UNTRAINED, Column, Data, Plan
from metasdf.surfaces import evaluate_poisson, evaluate_surfaces

# Of each context and method, how the experiment of a category is called.
METHODS = {
    "dense": {"deepsdf": "{}-deepsdf", "metasdf": "{}-dense", REFINED: "{}-dense"},
    "levelset": {"pointnet": "{}-pointnet", "metasdf": "{}-levelset"},
    "oriented": {UNTRAINED: "{}-oriented", "metasdf": "{}-oriented", REFINED: "{}-oriented"},
}
TITLES = {"dense": "dense", "levelset": "level set", "oriented": "points with normals"}


def _columns(table: str, title: str, train: str, test: str) -> dict[str, Column]:
    return {f"{test}-{context}": Column(table, f"{title}, {TITLES[context]}", context, train, test,  # type: ignore[arg-type]
                                        {method: name.format(train) for method, name in methods.items()})
            for context, methods in METHODS.items()}  # fmt: skip


COLUMNS = {
    **_columns("table3", "planes", "planes", "planes"), **_columns("table3", "tables", "tables", "tables"),
    **_columns("table3", "chairs", "chairs", "chairs"), **_columns("table4", "tables -> benches", "tables", "benches"),
}  # fmt: skip


class Published(NamedTuple):
    """ShapeNet: chamfer x 1e-3 in its own units, mean and median over shapes; mean IoU, where it is published."""

    mean: float
    median: float
    iou: float | None = None


PUBLISHED: dict[str, dict[str, Published]] = {  # points with normals are not of the paper
    "planes-dense": {"deepsdf": Published(0.073, 0.031), "metasdf": Published(0.053, 0.021)},
    "planes-levelset": {"pointnet": Published(0.558, 0.222), "metasdf": Published(0.139, 0.067)},
    "tables-dense": {"deepsdf": Published(0.553, 0.068), "metasdf": Published(0.134, 0.059)},
    "tables-levelset": {"pointnet": Published(0.693, 0.216), "metasdf": Published(0.327, 0.095)},
    "chairs-dense": {"deepsdf": Published(0.17, 0.07, 0.82), "metasdf": Published(0.26, 0.09, 0.85)},  # "preliminary" (supplement 3.1.4)
    "chairs-levelset": {"pointnet": Published(1.00, 0.68, 0.61)},  # MetaSDF's cell is empty
    "benches-dense": {"deepsdf": Published(0.55, 0.17, 0.56), "metasdf": Published(1.34, 0.40, 0.51)},
    "benches-levelset": {"pointnet": Published(2.67, 2.12, 0.28), "metasdf": Published(1.48, 0.95, 0.33)},
}
REFINE = 200  # steps of refined fits
BEST_OF = 2  # reconstructions of each shape, the better one counts (supplement 3.2.6)
SYNSETS = {"planes": "02691156", "tables": "04379243", "chairs": "03001627", "benches": "02828884"}  # as ShapeNet calls them
# The real meshes of docs/data.md, and how few and coarse those of --scale small are.
REAL = {"planes": "FlightGear planes", "tables": "Sweet Home 3D tables", "chairs": "Sweet Home 3D chairs", "benches": "Sweet Home 3D benches"}
SMALL, SMALL_COUNT, SMALL_SPLIT = Sampling(samples=8000, surface=6000, views=0), 10, (60, 20, 20)
SMALL_CONVENTION, SMALL_RESOLUTION = Convention(points=3000), 48


def published(column: str, method: str) -> Published | None:
    return PUBLISHED.get(column, {}).get(method)


def data(shapes: str, split: str, plan: Plan) -> Data:
    if plan.small:
        return Data(_procedural(shapes, plan.work / "data" / f"small-{shapes}", SMALL_COUNT, SMALL, SMALL_SPLIT), shapes, f"procedural {shapes}")
    if plan.stores:
        return _given(shapes, split, plan.stores)
    stretch = 0 if split == "test" else plan.stretch
    real = _real(shapes, plan, stretch=stretch)
    label = REAL[shapes] + (f", {stretch} stretched {'copies' if stretch > 1 else 'copy'} of each" if stretch else "")
    if split == "test" or not plan.procedural:
        return Data(real, shapes, label)
    drawn = _procedural(shapes, _folder(plan, "procedural", f"{shapes}-{plan.procedural}"), plan.procedural, _sampling(plan), (100, 0, 0))
    both = merge([real.path, drawn.path], _folder(plan, "both", f"{_stretched(shapes, stretch)}-{plan.procedural}"))
    return Data(both, shapes, f"{label} and {plan.procedural:,} procedural ones")


def request(plan: Plan) -> dict[str, Any]:
    asked: dict[str, Any] = {"best_of": BEST_OF, "resolution": plan.resolution}
    if plan.stores:
        return asked | {"stores": [Store.open(path).fingerprint for path in plan.stores]}
    return asked | {"data": "real", "samples": plan.samples, "procedural": plan.procedural} | ({"stretch": plan.stretch} if plan.stretch else {})


def limit(slow: bool, plan: Plan) -> int | None:
    return plan.limit


def measure(prior: Prior, train: Data, test: Data, plan: Plan, *, limit: int | None, refine: int) -> dict[str, Any]:
    """With near_copies: shapes of training, and test shapes that they give away."""
    result = evaluate_surfaces(prior, test.store, category=test.category, limit=limit, resolution=resolution_of(plan), best_of=BEST_OF,
                               refine=refine, convention=SMALL_CONVENTION if plan.small else PAPER, device=plan.device)  # fmt: skip
    return result | {"near_copies": near_copies(*_rows(train, "train"), *_rows(test, "test"))}


def measure_untrained(n_points: int, test: Data, plan: Plan, *, limit: int | None) -> dict[str, Any]:
    """Of screened Poisson, from as many points as priors see. No shape is in training."""
    return evaluate_poisson(test.store, n_points=n_points, category=test.category, limit=limit, best_of=BEST_OF,
                            convention=SMALL_CONVENTION if plan.small else PAPER) | {"near_copies": []}  # fmt: skip


def resolution_of(plan: Plan) -> int:
    return SMALL_RESOLUTION if plan.small else plan.resolution


def told(column: str, method: str, result: dict[str, Any]) -> str:
    found = result["metrics"]["chamfer_field"] or {"mean": float("nan"), "median": float("nan")}
    return (f"chamfer {found['mean'] * 1e3:.3g} / {found['median'] * 1e3:.3g} x 1e-3 in field units (mean / median), n {result['n']:,}, "
            f"failed {result['failed']:,}")  # fmt: skip


def _rows(data: Data, split: str) -> tuple[Store, NDArray[np.int64]]:
    return data.store, rows_of(data.store, split, data.category)


def _given(shapes: str, split: str, stores: tuple[Path, ...]) -> Data:
    for path in stores:
        store = Store.open(path)
        there = {store.meta["shapes"][row]["category"] for row in store.split(split)} if "shapes" in store.meta else set[str]()
        for category in (shapes, SYNSETS[shapes]):
            if category in there:
                return Data(store, category, f"{shapes} of {path.name}")
    raise UsageError(f"no data set has {shapes} in its split {split}", where=", ".join(map(str, stores)),
                     cause="other categories, or prepared without their folders",
                     fix=f"give another --data STORE; the category is called {shapes} or {SYNSETS[shapes]}")  # fmt: skip


def _real(shapes: str, plan: Plan, *, stretch: int) -> Store:
    """The real meshes of a category; training and test shapes as their split file says, which keeps families of near-copies together."""
    if plan.origin is None:
        raise UsageError("--data real needs the folder of the meshes", fix="--from MESHES (docs/data.md: meshes from Debian packages); "
                         "or data sets of your own with --data STORE")  # fmt: skip
    listed = plan.origin / "splits.json"
    if not listed.is_file():
        raise UsageError("The folder of real meshes has no splits.json", where=plan.origin,
                         cause="another folder than examples/debian_meshes.py writes",
                         fix="prepare your meshes with metasdf prepare, and give --data STORE")  # fmt: skip
    of = {name: split for name, split in SplitFiles.read([str(listed)]).listed.items() if name.startswith(f"{shapes}/")}
    return prepare_meshes(plan.origin, _folder(plan, "real", _stretched(shapes, stretch)), sampling=_sampling(plan), split_files=SplitFiles(of),
                          stretch=stretch)  # fmt: skip


def _procedural(shapes: str, out: Path, count: int, sampling: Sampling, split: tuple[float, float, float]) -> Store:
    return prepare_meshes(f"procedural-{shapes}", out, sampling=sampling, split=split, count=count)


def _stretched(shapes: str, stretch: int) -> str:
    return f"{shapes}-stretched-{stretch}" if stretch else shapes


def _sampling(plan: Plan) -> Sampling:
    return Sampling(samples=plan.samples)


def _folder(plan: Plan, kind: str, name: str) -> Path:
    """Data sets of other samples lie beside each other."""
    return plan.work / "data" / f"{kind}-{name}-{plan.samples}"
