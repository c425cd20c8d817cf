"""The table of jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lorafusion.plans.quantities import duration
from lorafusion.reports.tables import table

__all__ = ["job_section"]

LISTED = 2000
_LONGEST = 400
_HEADS = (
    "job|state|steps|loss, first|loss, last|held-out, before|held-out, after|tokens|tokens/s|"
    "compute|rank|reason"
).split("|")
_HINT = (
    "Tokens/s of a job are its tokens over the seconds that all jobs trained. Compute is its part "
    "of the forwards, backwards and steps of all stages, by its share of each microbatch's load."
)


def job_section(jobs: Sequence[Mapping[str, Any]]) -> str:
    """HTML of ``jobs`` of the figures."""
    left = len(jobs) - LISTED
    more = f'<p class="note">{left:,} more jobs are in report.json.</p>' if left > 0 else ""
    rows = [_row(job) for job in jobs[:LISTED]]
    width = len(_HEADS) if any(job["reason"] for job in jobs[:LISTED]) else len(_HEADS) - 1
    made = table(_HEADS[:width], [row[:width] for row in rows])
    return f'<p class="hint">{_HINT}</p>\n{made}\n{more}'


def _cut(reason: str) -> str:
    return reason if len(reason) <= _LONGEST else reason[:_LONGEST] + " … (all of it: report.json)"


def _row(job: Mapping[str, Any]) -> list[str]:
    of = f"/{job['total_steps']:,}" if job["total_steps"] else ""
    skipped = f" ({job['skipped']:,} skipped)" if job["skipped"] else ""
    losses = ("loss_first", "loss_last", "eval_before", "eval_after")
    rate, took = job["tokens_per_s"], job["compute_s"]
    return [
        job["name"],
        job["state"],
        f"{job['steps']:,}{of}{skipped}",
        *("–" if job[name] is None else f"{job[name]:.3f}" for name in losses),
        f"{job['tokens']:,}",
        f"{rate:,.1f}" if rate else "–",
        duration(took, "s") if took else "–",
        f"{job['rank']:,}" if job["rank"] else "–",
        _cut(job["reason"] or ""),
    ]
