"""The one interface of every method in the paper: a conditioner maps a context set to the parameters of a field."""

from __future__ import annotations

from torch import Tensor, nn

from metasdf.fields import FieldSpec, Params
from metasdf.tasks import Observations, TaskBatch


class Conditioner(nn.Module):
    """Context -> Params. `forward` serves evaluation and reconstruction; `training_params` may use the identity of the tasks."""

    spec: FieldSpec

    def forward(self, context: Observations) -> Params:
        raise NotImplementedError

    def training_params(self, batch: TaskBatch) -> tuple[Params, Tensor]:
        """Parameters for the batch and the prior's own loss (zero unless a method has one, such as a penalty on codes).

        That loss is a mean over the batch's tasks, or does not depend on them: training may see a batch in parts.
        """
        return self(batch.context), batch.query.y.new_zeros(())

    def project(self) -> None:
        """Called after each optimiser step, for constraints that are kept by projection."""
