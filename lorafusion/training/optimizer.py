"""One job's AdamW on one stage, and the verdict on a step: how much of it, or nothing at all.

A verdict is a float64 number: what gradients are multiplied by, or NaN where the step is to be
skipped. It stays a tensor, so that a device is never waited for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch.autograd.graph import increment_version

from lorafusion.jobs.schema import JobSpec

MOMENTS = ("exp_avg", "exp_avg_sq")


class JobOptimizer:
    """torch's AdamW over one job's parameters, each by itself.

    It is the fused one, which alone can skip a step without a look at the device's memory. Its
    result for a tensor does not depend on what else is in the list.
    """

    def __init__(self, spec: JobSpec, parameters: Mapping[str, torch.Tensor]) -> None:
        """``parameters``: full name -> leaf, in the base's order. There may be none."""
        self._parameters = dict(parameters)
        self._each = sum(parameter.nbytes for parameter in parameters.values())
        leaves = list(parameters.values())
        self._adamw = torch.optim.AdamW(
            # torch refuses an optimizer of nothing, which a job has on some stages.
            leaves or [torch.zeros(0)],
            lr=spec.learning_rate,
            betas=(spec.adam_beta1, spec.adam_beta2),
            eps=spec.adam_epsilon,
            weight_decay=spec.weight_decay,
            fused=True,
        )

    def apply(
        self, gradients: Sequence[torch.Tensor], verdict: torch.Tensor, *, learning_rate: float
    ) -> None:
        """Update by ``gradients`` times ``verdict``, or change nothing where it is NaN.

        Args:
            gradients: One per parameter; they are scaled in place.
            verdict: float64 scalar, see :func:`judge`.
            learning_rate: Of this step.
        """
        if not self._parameters:
            return
        skip = verdict.isnan()
        factor = torch.where(skip, torch.ones_like(verdict), verdict)
        leaves = list(self._parameters.values())
        for parameter, gradient in zip(leaves, gradients, strict=True):
            # A factor of 1 keeps every bit.
            parameter.grad = gradient.mul_(factor)
        self._adamw.param_groups[0]["lr"] = learning_rate
        # As torch's GradScaler hands it to the fused optimizers.
        vars(self._adamw)["found_inf"] = skip.to(torch.float32)
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        # The fused kernel does not tell autograd, which then could not refuse a stale backward.
        increment_version(leaves)

    @property
    def nbytes(self) -> int:
        """Of the moments; none are there before the first update."""
        return len(MOMENTS) * self._each if self._adamw.state else 0

    def moments(self) -> dict[str, torch.Tensor]:
        """``<name>.exp_avg`` and ``<name>.exp_avg_sq`` -> tensor; none before the first update."""
        return {
            f"{name}.{moment}": self._adamw.state[parameter][moment]
            for name, parameter in self._parameters.items()
            for moment in MOMENTS
            if parameter in self._adamw.state
        }

    def load(self, tensors: Mapping[str, torch.Tensor], updates: int) -> None:
        """Continue from :meth:`moments` after so many updates that were not skipped."""
        if not updates:
            return
        for name, parameter in self._parameters.items():
            moments = {moment: tensors[f"{name}.{moment}"] for moment in MOMENTS}
            self._adamw.state[parameter] = {
                "step": torch.tensor(float(updates), device=parameter.device),
                **{moment: value.to(parameter, copy=True) for moment, value in moments.items()},
            }


def squares_of(gradients: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The squared Euclidean norm of each, float64 scalars."""
    return [gradient.double().square().sum() for gradient in gradients]


def add_squares(total: torch.Tensor, squares: Sequence[torch.Tensor]) -> torch.Tensor:
    """``total`` plus :func:`squares_of` the gradients, in float64.

    Tensor by tensor from the last to the first, as the stages come in the backward: the sum has the
    same bits however the layers are cut into stages.
    """
    for square in reversed(squares):
        total = total + square
    return total


def judge(squares: torch.Tensor, loss: torch.Tensor, max_norm: float | None) -> torch.Tensor:
    """The verdict on a step, as ``torch.nn.utils.clip_grad_norm_`` computes its coefficient.

    Args:
        squares: Squared norm of the whole gradient, float64 scalar.
        loss: Any sum of the step's losses, float64 scalar; only whether it is finite counts.
        max_norm: The norm that the gradient is scaled down to; None: not scaled.
    """
    norm = squares.sqrt()
    factor = torch.ones_like(norm)
    if max_norm is not None:
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    return torch.where(norm.isfinite() & loss.isfinite(), factor, torch.full_like(norm, torch.nan))
