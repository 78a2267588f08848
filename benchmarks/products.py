"""The matrix products that a meta-training gradient cannot do without, and nothing else: no engine made of torch's products is faster.

Per layer between hidden layers, inner step and task they are nine (docs/performance.md derives them):
    h W^T        h U^T          R{h} W^T          forward pass, and its tangent as the weights move along U
    delta W      delta U        R{delta} W        backward pass, and its tangent
    delta^T h    R{delta}^T h   delta^T R{h}      gradient, and its tangent: the Hessian-vector product
The first layer needs four (its input does not move, and nothing asks for the gradient in it), the last all nine, thin ones. The query takes
a forward and a backward pass.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from metasdf.fields import FieldSpec

Product = tuple[Tensor, Tensor, Tensor]  # a, b and where a b goes, each with the tasks in front


class Network:
    """Operands of every product of `points` points, each in a buffer of its own, as an inner step of a training step holds them."""

    def __init__(self, spec: FieldSpec, *, tasks: int, points: int, dtype: torch.dtype) -> None:
        self.spec, self.tasks, self.points, self.dtype = spec, tasks, points, dtype
        self.generator = torch.Generator().manual_seed(0)
        self.layers = range(len(spec.shapes))
        # Scaled so that no chain of products grows: their ends, the first input and the last delta, are never written.
        self.weight, self.h, self.delta, self.gradient = self._operands()

    def _operands(self) -> tuple[list[Tensor], ...]:
        """Weights, the input of each layer and the last output, dL/dz of each layer, gradients of the weights; or the tangents of these."""

        def normal(rows: int, columns: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(self.tasks, rows, columns, generator=self.generator) * scale).to(self.dtype)

        shapes = self.spec.shapes
        outputs = [out for out, _ in shapes]
        return (
            [normal(out, inn, inn**-0.5) for out, inn in shapes],
            [normal(self.points, dim) for dim in (shapes[0][1], *outputs)],
            [normal(self.points, dim) for dim in outputs],
            [normal(out, inn) for out, inn in shapes],
        )

    def passes(self) -> list[Product]:
        """Forward, backward, gradient: three per layer, two in the first."""
        return [
            *((self.h[i], self.weight[i].mT, self.h[i + 1]) for i in self.layers),
            *((self.delta[i], self.weight[i], self.delta[i - 1]) for i in reversed(self.layers) if i),
            *((self.delta[i].mT, self.h[i], self.gradient[i]) for i in self.layers),
        ]

    def tangents(self) -> list[Product]:
        """Two for each of the above, less those of the coordinates, which do not move. The second of a pair overwrites the first: to add to
        it costs the same."""
        turn, r_h, r_delta, r_gradient = self._operands()
        products: list[Product] = []
        for i in self.layers:
            products.append((self.h[i], turn[i].mT, r_h[i + 1]))
            products += [(r_h[i], self.weight[i].mT, r_h[i + 1])] if i else []
        for i in reversed(self.layers[1:]):
            products += [(self.delta[i], turn[i], r_delta[i - 1]), (r_delta[i], self.weight[i], r_delta[i - 1])]
        for i in reversed(self.layers):
            products.append((r_delta[i].mT, self.h[i], r_gradient[i]))
            products += [(self.delta[i].mT, r_h[i], r_gradient[i])] if i else []
        return products


class ProductLimit:
    """All products of one meta-training gradient, to be run as training orders them (`cold`) or each on a few operands again and again (`hot`)."""

    def __init__(
        self, spec: FieldSpec, *, steps: int, tasks: int, context: int, query: int, dtype: torch.dtype, second_order: bool = True
    ) -> None:
        inner, outer = (Network(spec, tasks=tasks, points=points, dtype=dtype) for points in (context, query))
        self.products = inner.passes() * steps + outer.passes() + (inner.tangents() * steps if second_order else [])
        # Hot: as many tasks as threads, so that the operands of a product stay in the caches of the core that uses them.
        few = min(tasks, torch.get_num_threads())
        counts = Counter(_kind(product) for product in self.products)
        chosen = {_kind(product): product for product in self.products}
        self.hot_products = [(_part(chosen[kind], few), math.ceil(count * tasks / few)) for kind, count in counts.items()]

    def cold(self) -> None:
        for a, b, out in self.products:
            torch.bmm(a, b, out=out)

    def hot(self) -> None:
        for (a, b, out), times in self.hot_products:
            for _ in range(times):
                torch.bmm(a, b, out=out)

    def gflop(self) -> float:
        return counted_gflop(self.cold)


def _part(product: Product, tasks: int) -> Product:
    """The same product for the first few tasks, in memory of its own."""
    a, b, out = (t[:tasks].clone(memory_format=torch.preserve_format) for t in product)
    return a, b, out


def _kind(product: Product) -> tuple[tuple[int, ...], ...]:
    """Products of one kind have operands of the same shapes and memory orders."""
    return tuple((*t.shape, *t.stride()) for t in product)


def counted_gflop(work: Callable[[], object]) -> float:
    """Billions of floating point operations in the matrix products that `work` asks torch for, whatever code asks."""
    in_place = {torch.ops.aten.baddbmm_: _added_flop}  # the one our engine uses that torch's counter does not know
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        work()
    return counter.get_total_flops() / 1e9


def _added_flop(added: torch.Size, a: torch.Size, b: torch.Size, **_: object) -> int:
    """Of `baddbmm_`, from the shapes of its operands."""
    return 2 * a[0] * a[1] * a[2] * b[2]
