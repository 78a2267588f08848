"""metasdf: neural signed distance functions in five gradient steps.

    prior = metasdf.load("mnist-levelset")
    sdf = prior.adapt(points)          # (N, 2), any units
    sdf(x); sdf.value_and_grad(x)
    metasdf.sdf_from_mesh("mesh.obj")(x)    # no network: the mesh's own signed distance, with a robust sign

Importing the package is cheap: each name below is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "load": "prior", "load_sdf": "prior", "shipped": "prior", "Prior": "prior", "SDF": "prior", "Frame": "geometry.frame",
    "sdf_from_mesh": "geometry.signed",
    "MetaSDF": "conditioning.metasdf", "InnerLoopConfig": "conditioning.inner_loop", "Conditioner": "conditioning.base",
    "FieldSpec": "fields", "Layer": "fields", "field": "fields", "Distance": "heads", "Head": "heads",
    "Observations": "tasks", "TaskBatch": "tasks", "meta_loss": "train", "experiment": "experiments",
    "MetaSDFError": "errors", "InputError": "errors", "UsageError": "errors", "CheckpointError": "errors", "TrainingError": "errors",
}  # fmt: skip

__all__ = list(_HOMES)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"metasdf.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'metasdf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
