"""Make a prior narrower: the units of each hidden layer that its theta uses least go, so that other parameters may take their place.

    python examples/narrow_prior.py PRIOR WIDTH OUT.safetensors

Units that are off everywhere in the domain go first. What is left is a prior like any other, to be trained on with --init.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch
from torch import Tensor

from metasdf.conditioning.metasdf import MetaSDF
from metasdf.fields import encode
from metasdf.prior import Prior, build_conditioner, load


@torch.no_grad()
def kept_units(model: MetaSDF, width: int) -> list[Tensor]:
    """The units of each hidden layer that stay: by how much of the next layer's input they give, over points of the domain."""
    h = encode(torch.rand(4096, model.spec.in_dim, generator=torch.Generator().manual_seed(0)) - 0.5, model.spec)
    kept = []
    for layer, following in zip(model.theta[:-1], model.theta[1:], strict=True):
        h = (h @ layer.weight.mT + layer.bias).relu()
        kept.append((h.square().mean(0).sqrt() * following.weight.norm(dim=0)).topk(width).indices.sort().values)
    return kept


@torch.no_grad()
def narrowed(prior: Prior, width: int) -> Prior:
    model = prior.conditioner
    assert isinstance(model, MetaSDF)
    kept = kept_units(model, width)
    inputs = [slice(None), *kept]  # of each layer
    outputs = [*kept, slice(None)]
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        kind, number = name.rsplit(".", 1)
        if kind == "curvature.left":
            tensor = tensor[outputs[int(number)]][:, outputs[int(number)]]
        elif kind == "curvature.right":
            tensor = tensor[inputs[int(number)]][:, inputs[int(number)]]
        else:  # weights and biases in turn, of theta or (steps first) of the rates
            layer, bias = divmod(int(number), 2)
            tensor = tensor[..., outputs[layer]] if bias else tensor[..., outputs[layer], :][..., inputs[layer]]
        state[name] = tensor
    e = replace(prior.experiment, field=replace(prior.experiment.field, width=width))
    smaller = build_conditioner(e)
    smaller.load_state_dict(state)
    return Prior(e, smaller, extent=prior.extent, card=prior.card)


if __name__ == "__main__":
    narrowed(load(sys.argv[1]), int(sys.argv[2])).save(sys.argv[3])
