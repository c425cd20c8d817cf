"""One job while it trains: its adapter, its optimizer, the sums of its running step.

Nothing here knows of other jobs, which is half of why they cannot change it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lorafusion.adapters.bank import ResidentAdapter
from lorafusion.errors import StepError
from lorafusion.jobs.schema import JobSpec
from lorafusion.planner.queue import JobQueue
from lorafusion.training.checkpoint import Checkpoint, Json
from lorafusion.training.data import JobData
from lorafusion.training.gradients import GradientSum
from lorafusion.training.optimizer import JobOptimizer
from lorafusion.training.queues import adapter_rank, eval_is_due
from lorafusion.training.schedule import learning_rate


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did. ``skipped``: loss or gradient was not finite."""

    step: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    trained_tokens: int
    skipped: bool


@dataclass
class Progress:
    """What a job's result says of its course; it goes into checkpoints.

    Losses are means over trained tokens, in nats; None = not measured yet.
    """

    tokens: int = 0
    bad_steps: int = 0
    loss_first: float | None = None
    loss_last: float | None = None
    eval_before: float | None = None
    eval_after: float | None = None


class TrainingJob:
    """State of one job. ``step`` counts the optimizer steps that are done."""

    def __init__(
        self, spec: JobSpec, data: JobData, adapter: ResidentAdapter, *, deterministic: bool
    ) -> None:
        """``deterministic``: gradients are added in the order of the samples in their batch."""
        self.spec = spec
        self.data = data
        self.adapter = adapter
        self.step = 0
        self.progress = Progress()
        self.parameters = adapter.parameters()
        self.gradients = GradientSum(list(self.parameters.values()))
        self._optimizer = JobOptimizer(spec, self.parameters)
        self._deterministic = deterministic
        self._sums: dict[int, tuple[float, int]] = {}
        self._evaluated = -1
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
    def finished(self) -> bool:
        """Whether the last step is done, and evaluated where that is asked for."""
        last = self.total_steps
        return self.step == last and (not self._eval_is_due(last) or self._evaluated == last)

    def check_weights(self) -> None:
        """An update may overflow, and after the last one no loss would show it.

        Raises:
            StepError: A weight is not finite.
        """
        bad = [name for name, p in self.parameters.items() if not bool(p.isfinite().all())]
        if bad:
            raise StepError(
                f"after step {self.step} {len(bad)} of its {len(self.parameters)} tensors are not "
                f"finite, such as {bad[0]}. Lower the learning rate."
            )

    def queue(self, *, window: int) -> JobQueue:
        """The job's next ``window`` steps and evals, from where it stands."""
        empty = JobQueue(
            self.name,
            (),
            remaining_load=self.data.tokens_from(self.step + 1),
            remaining_steps=self.total_steps - self.step,
            rank=adapter_rank(self.spec),
        )
        first = {self.step: self.data.eval_batch(self.step)} if self._eval_is_due(self.step) else {}
        return self.refill(empty.extend((), first), window=window)

    def refill(self, queue: JobQueue, *, window: int) -> JobQueue:
        """Put later steps behind the queue's, up to ``window`` of them."""
        # Plans run ahead of training, so it is not self.step that says where the queue ends.
        last = self.total_steps - queue.remaining_steps + len(queue.batches)
        until = min(self.total_steps, last + window - len(queue.batches))
        steps = range(last + 1, until + 1)
        evals = {t: self.data.eval_batch(t) for t in steps if self._eval_is_due(t)}
        return queue.extend([self.data.batch(t) for t in steps], evals)

    def add_loss(self, sample: int, loss: float, trained_tokens: int) -> None:
        """Sum of one sample's cross-entropies in the running step or eval."""
        assert sample not in self._sums, f"sample {sample} ran twice"
        self._sums[sample] = (loss, trained_tokens)

    def finish_step(self) -> StepResult:
        """Take the optimizer step whose last sample has run, or skip it if it is not finite."""
        step = self.step + 1
        loss = self._mean_loss()
        rate = learning_rate(self.spec, step, self.total_steps)
        gradients = self.gradients.finish()
        finite = math.isfinite(loss)
        norm = self._optimizer.step(gradients, learning_rate=rate) if finite else math.nan
        skipped = not (finite and math.isfinite(norm))
        self.step = step
        self._record(loss, skipped=skipped)
        result = StepResult(
            step=step,
            epoch=self.data.order.epoch_of(step),
            loss=loss,
            learning_rate=rate,
            grad_norm=norm,
            tokens=self.data.tokens(step),
            trained_tokens=self.data.trained_tokens(step),
            skipped=skipped,
        )
        self._begin_step()
        return result

    def finish_eval(self, step: int) -> tuple[float, int]:
        """Mean held-out loss after ``step``, and the trained tokens it is over."""
        tokens = sum(count for _, count in self._sums.values())
        loss = self._mean_loss()
        self._evaluated = step
        if step == 0:
            self.progress.eval_before = loss
        else:
            self.progress.eval_after = loss
        return loss, tokens

    def checkpoint(self) -> tuple[dict[str, Any], dict[str, Json]]:
        """Tensors by name, and the rest of the state."""
        moments, updates = self._optimizer.state()
        return {**self.parameters, **moments}, {"updates": updates, **vars(self.progress)}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from ``checkpoint``; what was added up of its next step is gone."""
        tensors = checkpoint.tensors()
        state: dict[str, Any] = dict(checkpoint.state)
        updates = int(state.pop("updates"))
        self.adapter.load({name: tensors.pop(name) for name in self.parameters})
        self._optimizer.load(tensors, updates)
        self.progress = Progress(**state)
        self.step = checkpoint.step
        self._begin_step()

    def _begin_step(self) -> None:
        self._sums.clear()
        if self.step < self.total_steps:
            order = self.data.order.batch(self.step + 1).tolist()
            self.gradients.begin(order if self._deterministic else None)

    def _mean_loss(self) -> float:
        # fsum is exact, so the mean does not depend on the order in which the samples ran.
        sums = self._sums.values()
        mean = _total(loss for loss, _ in sums) / sum(count for _, count in sums)
        self._sums.clear()
        return mean

    def _record(self, loss: float, *, skipped: bool) -> None:
        progress = self.progress
        progress.tokens += self.data.tokens(self.step)
        progress.bad_steps = progress.bad_steps + 1 if skipped else 0
        progress.loss_last = loss
        if progress.loss_first is None:
            progress.loss_first = loss

    def _eval_is_due(self, step: int) -> bool:
        return eval_is_due(self.spec, self.data, step)


def _total(losses: Iterable[float]) -> float:
    values = list(losses)
    return math.fsum(values) if all(map(math.isfinite, values)) else math.nan
