"""Start a training from a prior: the same parameters, or those of a simpler field grown and trimmed to fit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metasdf.conditioning.base import Conditioner
from metasdf.conditioning.codes import CODES
from metasdf.conditioning.metasdf import MetaSDF
from metasdf.errors import UsageError
from metasdf.experiments import Experiment
from metasdf.fields import encode
from metasdf.prior import Prior

NEW_INPUTS = ("_theta.0", "rates.raw.0", "curvature.right.0")  # tensors whose size is that of the field's inputs
FIX = "use the same method, field and inner settings, see: metasdf models NAME"


def load_into(model: Conditioner, prior: Prior, experiment: Experiment) -> None:
    """Give `model`, built for `experiment`, the parameters of `prior`.

    What a simpler prior lacks starts so that nothing changes yet: curvature, Fourier features. A wider MetaSDF prior loses the units that its
    theta uses least. Codes of training shapes stay fresh. Raises UsageError where the two do not fit.
    """
    was, now = _meaning(prior.experiment), _meaning(experiment)
    if was != now:
        differing = ", ".join(f"{k}: {was[k]}" for k in was if was[k] != now[k])
        raise UsageError(f"--init has another method, layers or rates than this experiment ({differing})", where=prior.experiment.name, fix=FIX)
    fresh = model.state_dict()
    kept = {name: t for name, t in fresh.items() if name.startswith("curvature.") or name == CODES}
    given = narrowed(prior, experiment.field.width) if _wider(prior, experiment) else dict(prior.conditioner.state_dict())
    if experiment.field.frequencies and not prior.experiment.field.frequencies:
        given = {name: _with_new_inputs(name, t, fresh[name]) if name in NEW_INPUTS and name in fresh else t for name, t in given.items()}
    try:
        model.load_state_dict(kept | given)
    except RuntimeError as error:
        raise UsageError("--init has other layers or rates than this experiment", where=prior.experiment.name, cause=str(error).splitlines()[0],
                         fix=FIX) from error  # fmt: skip


def _meaning(e: Experiment) -> dict[str, Any]:
    """What the same tensors stand for, beyond their shapes."""
    sine = e.field.activation == "sine"
    return {"method.kind": e.method.kind, "field.activation": e.field.activation, "field.w0": e.field.w0 if sine else None,
            "softplus rates": e.inner.constraint == "softplus"}  # fmt: skip


def _wider(prior: Prior, experiment: Experiment) -> bool:
    was, now = prior.experiment.field, experiment.field
    return isinstance(prior.conditioner, MetaSDF) and was.hidden_layers == now.hidden_layers and was.width > now.width and not was.skip


@torch.no_grad()
def narrowed(prior: Prior, width: int) -> dict[str, Tensor]:
    """The tensors of a MetaSDF prior with `width` units in each hidden layer: those stay that give the next layer most of its input.

    Units that are off everywhere in the domain go first, and nothing changes by that.
    """
    model = prior.conditioner
    assert isinstance(model, MetaSDF)
    kept = _kept_units(model, width)
    inputs = [slice(None), *kept]  # of each layer
    outputs = [*kept, slice(None)]
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        kind, number = name.rsplit(".", 1)
        if kind == "curvature.left":
            tensor = tensor[outputs[int(number)]][:, outputs[int(number)]]
        elif kind == "curvature.right":
            tensor = tensor[inputs[int(number)]][:, inputs[int(number)]]
        elif kind == "_theta" or prior.experiment.inner.rates in ("parameter", "parameter_step"):  # weights and biases in turn; rates: steps first
            layer, bias = divmod(int(number), 2)
            tensor = tensor[..., outputs[layer]] if bias else tensor[..., outputs[layer], :][..., inputs[layer]]
        tensors[name] = tensor
    return tensors


def _kept_units(model: MetaSDF, width: int) -> list[Tensor]:
    """Of each hidden layer, in rising order: by a unit's root mean square over points of the domain times the norm of its weights onwards."""
    h = encode(torch.rand(4096, model.spec.in_dim, generator=torch.Generator().manual_seed(0)) - 0.5, model.spec)
    kept = []
    for layer, following in zip(model.theta[:-1], model.theta[1:], strict=True):
        z = h @ layer.weight.mT + layer.bias
        h = z.relu() if model.spec.activation == "relu" else torch.sin(model.spec.w0 * z)
        kept.append((h.square().mean(0).sqrt() * following.weight.norm(dim=0)).topk(width).indices.sort().values)
    return kept


def _with_new_inputs(name: str, given: Tensor, fresh: Tensor) -> Tensor:
    """A tensor of the first layer of a field without Fourier features, for one that has them too: with weight zero, they change nothing yet."""
    n = given.shape[-1]
    grown = torch.zeros_like(fresh) if name == NEW_INPUTS[0] else fresh.clone()
    corner = grown[:n, :n] if name == NEW_INPUTS[2] else grown[..., :n]
    if corner.shape != given.shape:
        return given  # another layer altogether, as loading will say
    corner.copy_(given)
    return grown
