"""What the tables of 2D and of 3D shapes have in common: what a cell asks, and how cells are filled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from metasdf.data.store import Store
from metasdf.prior import Prior
from metasdf.tasks import ContextRule

Say = Callable[[str], None]
REFINED = "refined"  # MetaSDF's fits, refined: conditioning.refine
LABELS = {
    "hyper": "auto-decoder, hypernetwork", "concat": "auto-decoder, concatenation", "cnp4": "conditional neural process, 4 layers",
    "cnp9": "conditional neural process, 9 layers", "deepsdf": "DeepSDF", "pointnet": "PointNet encoder",
    "poisson": "screened Poisson", "metasdf": "MetaSDF", REFINED: "MetaSDF, then Adam",
}  # fmt: skip
UNTRAINED = "poisson"  # learns nothing


def label(method: str, refine: int = 0) -> str:
    """What a method is called in public; refine: the steps by which its fits were refined."""
    return f"MetaSDF, then {refine} steps of Adam" if refine else LABELS[method]


class Column(NamedTuple):
    """What a table asks: a context, the shapes trained on, and those whose test split is asked for; of each method, the name of its experiment.
    Of a method that learns nothing: of the experiment whose context it is given."""

    table: str
    title: str
    context: ContextRule
    train: str
    test: str
    experiments: dict[str, str]


class Plan(NamedTuple):
    """How cells are filled. budget: seconds of training, None for the epochs of the experiment; limit: test shapes at most."""

    work: Path
    results: Path
    origin: Path | None = None  # tables of digits: where MNIST's files are, None to download them; of 3D shapes: the folder of real meshes
    preset: str = "cpu"
    budget: float | None = 900.0
    runs: int = 3  # of the evaluation, of digits
    limit: int | None = None
    small: bool = False
    device: torch.device = torch.device("cpu")
    stores: tuple[Path, ...] = ()  # 3D: prepared data sets; none: made of real meshes
    samples: int = 50_000  # 3D: of each shape that is prepared
    procedural: int = 200  # 3D: shapes drawn by dice that are trained on beside the real ones of a category
    stretch: int = 0  # 3D: stretched copies of each real shape that is trained on
    resolution: int = 128  # 3D: of reconstructed surfaces


class Data(NamedTuple):
    """Shapes of a cell: the category by which the store knows them, None for all; label: what they are called in public."""

    store: Store
    category: str | None
    label: str


class Tables(Protocol):
    """What tables of 2D and of 3D shapes do in their own way; a module each."""

    COLUMNS: dict[str, Column]
    REFINE: int  # steps by which fits are refined

    def data(self, shapes: str, split: str, plan: Plan) -> Data:
        """The shapes that a column is about, prepared if they are not there yet."""
        ...

    def request(self, plan: Plan) -> dict[str, Any]:
        """What of the plan the numbers depend on, beside experiment, budget and test shapes."""
        ...

    def limit(self, slow: bool, plan: Plan) -> int | None:
        """Test shapes at most; slow: of a method that fits each by tens or hundreds of steps."""
        ...

    def measure(self, prior: Prior, train: Data, test: Data, plan: Plan, *, limit: int | None, refine: int) -> dict[str, Any]: ...

    def told(self, cell: str, method: str, result: dict[str, Any]) -> str:
        """The result, in words, beside what was published."""
        ...
