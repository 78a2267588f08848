"""Tables 1 and 2: 2D signed distances of digits, in and out of distribution (main paper, section 4; supplement 2.1)."""

from __future__ import annotations

from typing import Any

from metasdf.conditioning.codes import AutoDecoder
from metasdf.data.prepare import prepare_mnist, prepare_slice
from metasdf.errors import UsageError
from metasdf.evaluate import evaluate
from metasdf.prior import Prior
from metasdf.reproduce.plan import REFINED, Column, Data, Plan
from metasdf.tasks import ContextRule

METHODS = ("hyper", "concat", "cnp4", "cnp9", "metasdf")


def _column(table: str, title: str, context: ContextRule, train: str, test: str) -> Column:
    name = f"mnist-{context}"
    experiments = {method: name if method == "metasdf" else f"{name}-{method}" for method in METHODS}
    return Column(table, title, context, train, test, experiments | ({REFINED: name} if context == "dense" else {}))


COLUMNS = {
    "dense": _column("table1", "dense", "dense", "mnist", "mnist"),
    "levelset": _column("table1", "level set", "levelset", "mnist", "mnist"),
    "unseen": _column("table2", "unseen digit", "dense", "mnist-unseen", "mnist-unseen"),
    "rotated": _column("table2", "rotation", "dense", "mnist", "mnist-rotated"),
    "composite": _column("table2", "composite", "dense", "mnist-composite", "mnist-composite"),
}
# x 1e-6, (mean, standard deviation over three runs): main paper, tables of section 4; supplement, tables 1 and 2. Columns as in COLUMNS.
PUBLISHED: dict[str, tuple[tuple[float, float | None], ...]] = {
    "hyper": ((44, None), (1562, None), (144, None), (189, None), (284, None)),
    "concat": ((50, None), (1813, None), (62, None), (151, None), (137, None)),
    "cnp4": ((101.7, 5.1), (154.9, 1.0), (252.4, 5.0), (301.1, 10.3), (484.9, 13.6)),
    "cnp9": ((92.5, 2.0), (145.8, 1.2), (223.4, 4.2), (291.2, 8.6), (468.0, 22.8)),
    "metasdf": ((15.4, 0.2), (56.6, 0.5), (22.8, 0.5), (33.3, 1.1), (59.8, 1.2)),
}
REFINE = 40  # steps of refined fits
SLOW_SHAPES = 1000  # test shapes of methods that take tens or hundreds of steps of Adam for each
CODE_BATCH = 48  # of these fitted at once: a hypernetwork's weights are read once for all of them


def published(column: str, method: str) -> tuple[float, float | None] | None:
    return PUBLISHED[method][list(COLUMNS).index(column)] if method in PUBLISHED else None


def data(shapes: str, split: str, plan: Plan) -> Data:
    if not plan.small:
        return Data(prepare_mnist(plan.origin, plan.work / "data" / shapes, name=shapes), None, shapes)
    if shapes != "mnist":
        raise UsageError("the package's 100 digits make table 1 alone", where=shapes, fix="metasdf reproduce table1 --scale small")
    return Data(prepare_slice(plan.work / "data" / "mnist-slice"), None, "100 digits of MNIST")


def request(plan: Plan) -> dict[str, Any]:
    return {"runs": plan.runs}


def limit(slow: bool, plan: Plan) -> int | None:
    return min(plan.limit or SLOW_SHAPES, SLOW_SHAPES) if slow else plan.limit


def measure(prior: Prior, train: Data, test: Data, plan: Plan, *, limit: int | None, refine: int) -> dict[str, Any]:
    batch = CODE_BATCH if isinstance(prior.conditioner, AutoDecoder) else 8
    return evaluate(prior, test.store, runs=plan.runs, limit=limit, batch=batch, refine=refine, device=plan.device)


def told(column: str, method: str, result: dict[str, Any]) -> str:
    known = published(column, method)
    return f"MSE {result['metrics']['mse']:.3g} ({f'published {known[0]:g}e-6' if known else 'not in the paper'}), n {result['n']:,}"
