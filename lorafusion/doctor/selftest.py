"""Training, tried: two jobs over one tiny random base, against a plain loop."""

from __future__ import annotations

from lorafusion.doctor.finding import Finding
from lorafusion.doctor.surroundings import Surroundings

TOLERANCE = 1e-9
"""Relative, in float64: what two ways of adding the same numbers may differ by."""


def self_test(around: Surroundings) -> Finding:
    """Two steps of two jobs give the losses that plain torch gives for each alone."""
    facts = around.facts("self_test")
    fix = "report this with the output of `lorafusion doctor --json`"
    if "error" in facts:
        found = f"two jobs could not be trained: {facts['error']}"
        return Finding("missing", found, "mend what is missing above first", fix)
    worst: float = facts["worst"]
    found = (
        f"2 steps of 2 jobs together, in {facts['seconds']:.1f} s: losses differ by {worst:.0e} "
    )
    found += "of their size from those of plain torch, each job alone"
    if not worst <= TOLERANCE:  # NaN, too
        means = f"what is trained here would be wrong; up to {TOLERANCE:.0e} is rounding"
        return Finding("missing", found, means, fix)
    return Finding("ok", found, "training runs here, and is right")
