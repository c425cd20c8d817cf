"""One job's AdamW step: norm, clipping, and the verdict whether the step may be taken at all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from lorafusion.errors import StepError
from lorafusion.jobs.schema import JobSpec

MOMENTS = ("exp_avg", "exp_avg_sq")


class JobOptimizer:
    """torch's AdamW over one job's parameters, tensor by tensor.

    ``foreach`` would mix tensors in one kernel; the plain loop's result does not depend on what
    else is in the list.
    """

    def __init__(self, spec: JobSpec, parameters: Mapping[str, torch.Tensor]) -> None:
        """``parameters``: full name -> leaf, in the base's order."""
        self._parameters = dict(parameters)
        self._max_norm = spec.max_grad_norm
        self._adamw = torch.optim.AdamW(
            list(parameters.values()),
            lr=spec.learning_rate,
            betas=(spec.adam_beta1, spec.adam_beta2),
            eps=spec.adam_epsilon,
            weight_decay=spec.weight_decay,
            foreach=False,
            fused=False,
        )

    def step(self, gradients: Sequence[torch.Tensor], *, learning_rate: float) -> float:
        """Clip and update, unless the gradient is not finite: then nothing is changed.

        Returns:
            The gradient's Euclidean norm before clipping.

        Raises:
            StepError: A setting is beyond the numbers that the weights can hold. A part of them
                may be updated, so the job cannot go on.
        """
        norm = gradient_norm(gradients)
        if not math.isfinite(norm):
            return norm
        scale = clip_coefficient(norm, self._max_norm)
        for parameter, gradient in zip(self._parameters.values(), gradients, strict=True):
            parameter.grad = gradient.mul_(scale) if scale < 1 else gradient
        self._adamw.param_groups[0]["lr"] = learning_rate
        try:
            self._adamw.step()
        except RuntimeError as error:  # a rate of 1e38, say: torch refuses to make it a float32
            raise StepError(
                f"the optimizer step with learning rate {learning_rate:g} cannot be computed: "
                f"{error}. Lower the learning rate."
            ) from error
        self._adamw.zero_grad(set_to_none=True)
        return norm

    def state(self) -> tuple[dict[str, torch.Tensor], int]:
        """``<name>.exp_avg`` and ``<name>.exp_avg_sq`` -> tensor, and the updates made so far."""
        tensors: dict[str, torch.Tensor] = {}
        updates = 0
        for name, parameter in self._parameters.items():
            state = self._adamw.state.get(parameter)
            if state:
                tensors |= {f"{name}.{moment}": state[moment] for moment in MOMENTS}
                updates = int(state["step"])
        return tensors, updates

    def load(self, tensors: Mapping[str, torch.Tensor], updates: int) -> None:
        """The inverse of :meth:`state`."""
        if not updates:
            return
        for name, parameter in self._parameters.items():
            self._adamw.state[parameter] = {
                "step": torch.tensor(float(updates)),
                **{moment: tensors[f"{name}.{moment}"].clone() for moment in MOMENTS},
            }


def gradient_norm(gradients: Sequence[torch.Tensor]) -> float:
    """Euclidean norm over all tensors, squared and summed in float64, tensor by tensor."""
    return math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients))


def clip_coefficient(norm: float, max_norm: float | None) -> float:
    """What gradients are multiplied by, as ``torch.nn.utils.clip_grad_norm_`` computes it."""
    return 1.0 if max_norm is None else min(1.0, max_norm / (norm + 1e-6))
