"""What one stage holds of one job: its part of the adapter, the gradient and AdamW's state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from lorafusion.adapters.bank import ResidentAdapter
from lorafusion.jobs.schema import JobSpec
from lorafusion.training.data import JobData
from lorafusion.training.gradients import GradientSum
from lorafusion.training.optimizer import MOMENTS, JobOptimizer, add_squares, squares_of
from lorafusion.training.queues import checkpoint_is_due
from lorafusion.training.schedule import learning_rate
from lorafusion.training.team import Peers


class JobShard:
    """One job on one stage. ``step`` counts the steps that are done here, skipped ones too.

    Nothing here knows of other jobs, which is half of why they cannot change it.
    """

    def __init__(
        self,
        spec: JobSpec,
        data: JobData,
        adapter: ResidentAdapter,
        *,
        deterministic: bool,
        shared: bool = False,
    ) -> None:
        """No step is done.

        Args:
            spec: The job.
            data: Its samples.
            adapter: Its part on this stage.
            deterministic: Gradients are added in the order of the samples in their batch.
            shared: Other replicas have samples of its steps too.
        """
        self.spec = spec
        self.data = data
        self.adapter = adapter
        self.step = 0
        self.parameters = adapter.parameters()
        self._adapter_bytes = sum(tensor.nbytes for tensor in self.parameters.values())
        self.gradients = GradientSum(list(self.parameters.values()), shared=shared)
        self.samples: list[int] = []
        """Whose gradients are in the running step."""
        self._optimizer = JobOptimizer(spec, self.parameters)
        self._deterministic = deterministic
        self._whole: torch.Tensor | None = None
        self._squares: Sequence[torch.Tensor] = ()
        self._begin_step()

    @property
    def name(self) -> str:
        """The job's name."""
        return self.spec.name

    @property
    def slot(self) -> int:
        """Slot of its adapter."""
        return self.adapter.slot

    @property
    def total_steps(self) -> int:
        """Steps of the whole job."""
        return self.data.order.total_steps

    @property
    def adapter_bytes(self) -> int:
        """Of its parameters."""
        return self._adapter_bytes

    @property
    def optimizer_bytes(self) -> int:
        """Of AdamW's moments."""
        return self._optimizer.nbytes

    def collect(self, samples: Sequence[int]) -> None:
        """Take the gradients that the backward of these samples has left."""
        self.gradients.collect(samples[0] if self._deterministic else None)
        self.samples += samples

    def add_up(self, peers: Peers) -> None:
        """The last sample of the step has been collected: add it up over the replicas."""
        self._whole = self.gradients.finish(peers.total)
        self._squares = ()

    def complete(self, squares: torch.Tensor) -> torch.Tensor:
        """``squares`` plus this stage's, behind :meth:`add_up`."""
        assert self._whole is not None, f"{self.name}: a norm before the gradient is whole"
        self._squares = squares_of(self.gradients.flat.views(self._whole))
        return add_squares(squares, self._squares)

    @property
    def first_bad(self) -> str | None:
        """The first parameter here whose gradient was not finite in the step completed last."""
        named = zip(self.parameters, self._squares, strict=False)
        return next((name for name, square in named if not bool(square.isfinite())), None)

    def apply(self, verdict: torch.Tensor) -> None:
        """Do the completed step as the verdict says."""
        step = self.step + 1
        assert self._whole is not None, f"{self.name}: step {step} is applied before it is complete"
        rate = learning_rate(self.spec, step, self.total_steps)
        self._optimizer.apply(self._whole, verdict, learning_rate=rate)
        self.step = step
        self._begin_step()

    def skip(self) -> None:
        """The completed step is over, and changes nothing: the job has failed here."""
        self.step += 1
        self._begin_step()

    def due(self) -> bool:
        """Whether a checkpoint is due after the step that was just done."""
        return checkpoint_is_due(self.spec, self.step, self.total_steps)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that a checkpoint needs of this stage, by name."""
        return {**self.parameters, **self._optimizer.moments()}

    def tensor_names(self, updates: int) -> tuple[str, ...]:
        """Names of what :meth:`restore` needs after so many updates."""
        moments = [f"{name}.{moment}" for name in self.parameters for moment in MOMENTS]
        return (*self.parameters, *(moments if updates else ()))

    def restore(self, tensors: Mapping[str, torch.Tensor], *, step: int, updates: int) -> None:
        """Continue after ``step``; what was added up of a later one is gone."""
        self.adapter.load({name: tensors[name] for name in self.parameters})
        self._optimizer.load(tensors, updates)
        self.step = step
        self._begin_step()

    def _begin_step(self) -> None:
        self._whole, self.samples = None, []
        if self.step < self.total_steps:
            order = self.data.order.batch(self.step + 1).tolist()
            self.gradients.begin(order if self._deterministic else None)
