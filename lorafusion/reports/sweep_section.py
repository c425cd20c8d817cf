"""Sweeps: a table of each by loss, the best marked, and drawings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lorafusion.jobs.ranking import HELD_OUT, TRAINING, Ranking, Variant, rankings, shown
from lorafusion.reports.sweep_plot import sweep_plot
from lorafusion.reports.tables import table

__all__ = ["rankings_of", "sweep_section"]

LISTED = 1000
_HINT = {
    HELD_OUT: "Ranked by the held-out loss after the last step: that of the adapter which is left.",
    TRAINING: "Ranked by the loss of the last training step, which is that of one global batch: no "
    "held-out loss is known. Held-out rows, eval in the job file, tell better.",
}


def sweep_section(sweeps: Sequence[Ranking]) -> str:
    """HTML of all sweeps."""
    return "\n".join(map(_sweep, sweeps))


def rankings_of(jobs: Sequence[Mapping[str, Any]]) -> tuple[Ranking, ...]:
    """The sweeps among the ``jobs`` of the figures."""
    return rankings(
        Variant(
            job=job["name"],
            sweep=job["sweep"]["name"],
            choice=job["sweep"]["choice"],
            state=job["state"],
            steps=job["steps"],
            total_steps=job["total_steps"],
            held_out=job["eval_after"],
            training=job["loss_last"],
        )
        for job in jobs
        if job["sweep"]
    )


def _sweep(ranking: Ranking) -> str:
    count = len(ranking.rows)
    head = f"{ranking.name}: {'1 job' if count == 1 else f'{count:,} jobs'}"
    parts = [f"<h3>{escape(head)}</h3>"]
    none = '<p class="note">None is best: no job that can be used has a finite loss.</p>'
    parts.append(f'<p class="hint">{_HINT[ranking.metric]}</p>' if ranking.ranked else none)
    rows = ranking.rows[:LISTED]
    best = {row for row, variant in enumerate(rows) if ranking.is_best(variant)}
    # The loss comes first, as a telephone shows the first columns alone.
    heads = [ranking.metric, *ranking.fields, "steps", "state", "job"]
    parts.append(sweep_plot(ranking))
    parts.append(table(heads, [_cells(ranking, variant) for variant in rows], best=best))
    if count > LISTED:
        parts.append(f'<p class="note">{count - LISTED:,} more jobs are in report.json.</p>')
    return "\n".join(parts)


def _cells(ranking: Ranking, variant: Variant) -> list[str]:
    loss = variant.held_out if ranking.metric == HELD_OUT else variant.training
    told = "–" if loss is None else f"{loss:.4f}"
    total = f"/{variant.total_steps:,}" if variant.total_steps else ""
    return [
        f"★ {told}" if ranking.is_best(variant) else told,
        *(shown(variant.choice[f]) if f in variant.choice else "–" for f in ranking.fields),
        f"{variant.steps:,}{total}",
        variant.state,
        variant.job,
    ]
