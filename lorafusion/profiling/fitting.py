"""From measured microbatches to the costs of a base's parts, and how well these predict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lorafusion.planner.cost import Counts, Linear, StageCost
from lorafusion.planner.parts import PartCosts
from lorafusion.profiling.fit import errors, fit_line, fit_linear, median_error
from lorafusion.profiling.measuring import Measured
from lorafusion.profiling.sizes import BaseBytes

__all__ = ["Fit", "fit_parts"]


@dataclass(frozen=True, slots=True)
class Fit:
    """The costs, and how far they are from what was measured.

    Attributes:
        parts: They.
        fitted: Relative error of forward and backward of each microbatch that was fitted to; above
            0 where too much is predicted.
        held_out: Of each that was not.
    """

    parts: PartCosts
    fitted: tuple[float, ...]
    held_out: tuple[float, ...]

    @property
    def error(self) -> float:
        """Median size of the held-out errors."""
        return median_error(self.held_out)


def fit_parts(measured: Sequence[Measured], sizes: BaseBytes, transfer: Linear, source: str) -> Fit:
    """Fit forward, backward, loss, step and activations.

    The head is what the loss took, of labelled rows; its backward is made in its forward. The rest
    is the layers', of which all are taken to be alike.

    Args:
        measured: All microbatches; those held out are only predicted.
        sizes: Of the base.
        transfer: Between stages.
        source: What was measured.
    """
    fitted = [one for one in measured if not one.held]
    counts = [one.probe.counts for one in fitted]
    labelled = [Counts(labelled=one.labelled) for one in counts]
    share = 1 / sizes.layers
    # A clock that is too coarse must not make a cost of 0 or below, which has no relative error.
    least = 1e-9
    ranks = [max(part.rank for part in one.probe.segments) for one in fitted]
    steps = [one.timing.steps / len(one.probe.segments) for one in fitted]
    step_fixed, step_rank = fit_line(ranks, [max(least, step) for step in steps])
    layer = StageCost(
        forward=fit_linear(
            counts, [max(least, one.timing.forward - one.timing.loss) for one in fitted]
        ).scaled(share),
        backward=fit_linear(counts, [max(least, one.timing.backward) for one in fitted]).scaled(
            share
        ),
        step_fixed_s=step_fixed * share,
        step_rank_s=step_rank * share,
        activation=fit_linear(counts, [max(1, one.layer_bytes) for one in fitted]).scaled(share),
        static_bytes=sizes.layer + sizes.adapters,
        working=sizes.working[0],
    )
    head = StageCost(
        forward=fit_linear(labelled, [max(least, one.timing.loss) for one in fitted]),
        backward=Linear(),
        activation=fit_linear(counts, [max(1, one.head_bytes) for one in fitted]),
        static_bytes=sizes.head,
        working=sizes.working[1],
    )
    embedding = StageCost(Linear(), Linear(), static_bytes=sizes.embedding)
    parts = PartCosts(sizes.layers, sizes.tied, embedding, layer, head, transfer, source)
    seconds = parts.model([range(sizes.layers)]).stages[0].seconds

    def missed(held: bool) -> tuple[float, ...]:
        some = [one for one in measured if one.held is held]
        return errors(
            [seconds(one.probe.counts) for one in some], [one.timing.microbatch for one in some]
        )

    return Fit(parts, missed(held=False), missed(held=True))
