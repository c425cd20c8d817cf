"""One job as rank 0 knows it: the sums of its running step, its course, its further steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lorafusion.jobs.schema import JobSpec
from lorafusion.planner.queue import JobQueue
from lorafusion.training.checkpoint import Json
from lorafusion.training.data import JobData
from lorafusion.training.queues import adapter_rank, eval_is_due
from lorafusion.training.schedule import learning_rate
from lorafusion.training.shard import JobShard

# Samples whose losses are not finite: once a weight is not, all of them are.
MOST_NAMED = 3


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

    ``updates``: steps that were not skipped. Losses are means over trained tokens, in nats; None =
    not measured yet. ``eval_best`` is the least held-out loss so far, ``stale`` the evaluations in
    a row since then that were not lower, up to the one after step ``compared``, and ``tired_at``
    the step after which they were too many.
    """

    updates: int = 0
    tokens: int = 0
    bad_steps: int = 0
    loss_first: float | None = None
    loss_last: float | None = None
    eval_before: float | None = None
    eval_after: float | None = None
    eval_best: float | None = None
    stale: int = 0
    compared: int = -1
    tired_at: int | None = None


class TrainingJob:
    """``step`` counts the optimizer steps whose results are known here."""

    def __init__(self, spec: JobSpec, data: JobData, shard: JobShard | None) -> None:
        """``shard`` is the job's part on this stage; None: another replica trains it."""
        self.spec = spec
        self.data = data
        self.shard = shard
        self.step = 0
        self.weight = 1.0
        """Its share of the places, against that of others."""
        self.first_bad: str | None = None
        """What was not finite in the first of the steps that were skipped in a row."""
        self.progress = Progress()
        self._sums: dict[int, tuple[float, int]] = {}
        self._evaluated = -1

    @property
    def name(self) -> str:
        """The job's name."""
        return self.spec.name

    @property
    def slot(self) -> int:
        """Slot of its adapter, which is on this stage."""
        assert self.shard is not None, f"{self.name} is on another replica"
        return self.shard.slot

    @property
    def total_steps(self) -> int:
        """Steps of the whole job."""
        return self.data.order.total_steps

    @property
    def finished(self) -> bool:
        """Whether the last step is done, and evaluated where that is asked for."""
        last = self.total_steps
        return self.step == last and (not self._eval_is_due(last) or self._evaluated == last)

    @property
    def tired(self) -> str | None:
        """Why it is to stop before its last step, or None.

        It takes the step that follows the evaluation: that may be in flight when the evaluation is
        known, while nothing behind it has begun when it is done, on any number of stages.
        """
        progress = self.progress
        if progress.tired_at is None or not progress.tired_at < self.step < self.total_steps:
            return None
        return (
            f"stopped early: up to step {progress.tired_at} its held-out loss was not lower in "
            f"{progress.stale} evaluations in a row"
        )

    def queue(self, *, window: int) -> JobQueue:
        """The job's next ``window`` steps and evals, from where it stands."""
        empty = JobQueue(
            self.name,
            (),
            remaining_load=self.data.tokens_from(self.step + 1),
            remaining_steps=self.total_steps - self.step,
            rank=adapter_rank(self.spec),
            weight=self.weight,
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

    def finish_step(self, *, squares: float, verdict: float) -> StepResult:
        """The step whose last sample has run was done, or skipped where ``verdict`` is NaN.

        ``squares`` is the squared norm of its gradient.
        """
        step = self.step = self.step + 1
        skipped = math.isnan(verdict)
        if not skipped:
            self.first_bad = None
        elif self.first_bad is None:
            self.first_bad = self._what_is_bad()
        loss = self._mean_loss()
        self._record(loss, skipped=skipped)
        return StepResult(
            step=step,
            epoch=self.data.order.epoch_of(step),
            loss=loss,
            learning_rate=learning_rate(self.spec, step, self.total_steps),
            grad_norm=math.sqrt(squares) if math.isfinite(loss) else math.nan,
            tokens=self.data.tokens(step),
            trained_tokens=self.data.trained_tokens(step),
            skipped=skipped,
        )

    def finish_eval(self, step: int) -> tuple[float, int]:
        """Mean held-out loss after ``step``, and the trained tokens it is over."""
        tokens = sum(count for _, count in self._sums.values())
        loss = self._mean_loss()
        self._evaluated = step
        self._compare(loss, step)
        if step == 0:
            self.progress.eval_before = loss
        else:
            self.progress.eval_after = loss
        return loss, tokens

    def state(self) -> dict[str, Json]:
        """What a checkpoint's manifest says of the job, beside its tensors."""
        return asdict(self.progress)

    def restore(self, state: Mapping[str, Any], *, step: int) -> None:
        """Continue after ``step`` with what :meth:`state` said then."""
        self.progress = Progress(**state)
        self.step = step

    def _what_is_bad(self) -> str:
        """Of the step that has just run; its samples are looked at, and its gradient here."""
        bad = [sample for sample, (loss, _) in self._sums.items() if not math.isfinite(loss)]
        order = self.data.order.batch(self.step).tolist()
        said = [
            f"the loss of {self.data.name('train', sample)}"
            for sample in sorted(bad, key=order.index)[:MOST_NAMED]
        ]
        if len(bad) > MOST_NAMED:
            said.append(f"that of {len(bad) - MOST_NAMED} more of its {len(order)} samples")
        parameter = None if self.shard is None else self.shard.first_bad
        if parameter is not None:
            said.append(f"the gradient of {parameter}")
        elif not bad:
            said.append("the norm of the gradient, or a gradient on another stage")
        return f"step {self.step}: {', '.join(said)}"

    def _compare(self, loss: float, step: int) -> None:
        progress, patience = self.progress, self.spec.eval.patience
        if step <= progress.compared:
            return  # evaluated again, as the job was resumed right behind it
        progress.compared = step
        if math.isfinite(loss) and (progress.eval_best is None or loss < progress.eval_best):
            progress.eval_best, progress.stale = loss, 0
        else:
            progress.stale += 1
        if patience is not None and progress.stale >= patience:
            progress.tired_at = step

    def _mean_loss(self) -> float:
        # fsum is exact, so the mean does not depend on the order in which the samples ran.
        sums = self._sums.values()
        mean = _total(loss for loss, _ in sums) / sum(count for _, count in sums)
        self._sums.clear()
        return mean

    def _record(self, loss: float, *, skipped: bool) -> None:
        progress = self.progress
        progress.updates += not skipped
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
