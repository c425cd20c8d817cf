"""The two panels of the picture: the strip of the whole run, and the lanes. Imports matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from matplotlib.collections import PolyCollection

from lorafusion.planner.plan import Plan
from lorafusion.planner.simulate import Action, Simulation
from lorafusion.plans import colours
from lorafusion.plans.excerpt import Excerpt, Lane
from lorafusion.plans.overview import STEP, overview, shares
from lorafusion.plans.quantities import count, scale
from lorafusion.plans.summary import PlanSummary

__all__ = ["INK", "SOFT", "draw_beside", "draw_lanes", "draw_strip"]

INK, SOFT, IDLE, GRID, EDGE = "#17202a", "#566472", "#eef1f4", "#dfe4e9", "#b8c4ce"
WAIT: dict[str, Any] = {"facecolors": IDLE, "edgecolors": "#aab4be", "hatch": "\\" * 5}
"""How waits look."""

Span: TypeAlias = tuple[int, float, float]

_BINS = 300
# Shares of a lane's row: its blocks, its sends.
_HEIGHT, _SEND = 0.82, 0.12


def draw_strip(panel: Any, plan: Plan, simulation: Simulation, summary: PlanSummary) -> None:
    """The share of the time in which the stages work, over the whole run."""
    found = overview(plan, simulation, max(1, min(_BINS, 2 * len(plan.places))))
    size = scale(summary.makespan, summary.unit)[1]
    edges = [index * found.width / size for index in range(len(found.bins) + 1)]
    base = [0.0] * len(found.bins)
    # By colour, not by job: 64 jobs would be slivers.
    for slot in (*range(len(colours.PALETTE)), STEP):
        heights = [_share_of_slot(shares, slot) for shares in found.bins]
        colour = SOFT if slot == STEP else colours.base(slot)
        tops = [low + height for low, height in zip(base, heights, strict=True)]
        if any(heights):
            panel.stairs(tops, edges, baseline=base, fill=True, color=colour, lw=0)
        base = tops
    _style(panel, summary.makespan, summary)
    panel.set_facecolor(IDLE)
    panel.set_ylim(0, 1)
    panel.set_yticks([0, 0.5, 1], ["0%", "50%", "100%"])
    panel.set_ylabel("busy", color=SOFT, fontsize=9)
    panel.set_title("Whole run, all stages together", loc="left", fontsize=9, color=SOFT)


def draw_lanes(
    panel: Any,
    plan: Plan,
    excerpt: Excerpt,
    summary: PlanSummary,
    title: str = "What each stage does when",
) -> None:
    """A lane per stage; no-ops and steps as marks."""
    unit, size = scale(summary.makespan, summary.unit)
    indices = {job.name: index for index, job in enumerate(summary.jobs)}
    for row, lane in enumerate(excerpt.lanes):
        panel.barh(row, excerpt.end / size, height=_HEIGHT, color=IDLE, lw=0, zorder=1)
        _draw_blocks(panel, plan, lane, (row, size), indices)
        _draw_marks(panel, plan, lane, (row, size))
    _style(panel, excerpt.end, summary)
    panel.set_ylim(len(excerpt.lanes) - 0.42, -0.58)
    panel.set_yticks(range(len(excerpt.lanes)), [_name(lane, summary) for lane in excerpt.lanes])
    panel.set_xlabel(f"time ({unit})", color=SOFT, fontsize=9)
    said = excerpt.remark(plan) or count(len(plan.places), "place")
    panel.set_title(f"{title}: {said}", loc="left", fontsize=9, color=SOFT)


def draw_beside(
    panel: Any, waits: Sequence[Span], sends: Sequence[Span], summary: PlanSummary
) -> None:
    """Waits, hatched, and sends, each as (row of the lane, start, end)."""
    size = scale(summary.makespan, summary.unit)[1]
    looks: tuple[tuple[Sequence[Span], float, dict[str, Any]], ...] = (
        (waits, _HEIGHT, WAIT),
        (sends, _SEND, {"facecolors": SOFT}),
    )
    for spans, height, look in looks:
        polygons = [
            [(x / size, row + side * height / 2) for x, side in _corners(start, end)]
            for row, start, end in spans
        ]
        panel.add_collection(PolyCollection(polygons, lw=0, zorder=2, **look))


def _corners(start: float, end: float) -> list[tuple[float, int]]:
    return [(start, 1), (end, 1), (end, -1), (start, -1)]


def _share_of_slot(shares: dict[int, float], slot: int) -> float:
    """Share of all jobs of a colour, or of the steps."""
    slots = len(colours.PALETTE)
    return sum(share for job, share in shares.items() if (STEP if job < 0 else job % slots) == slot)


def _draw_blocks(
    panel: Any, plan: Plan, lane: Lane, at: tuple[int, float], indices: dict[str, int]
) -> None:
    """One block an action, split by the jobs' shares of the load from the bottom up."""
    row, size = at
    plain: tuple[list[Any], list[str]] = ([], [])
    hatched: tuple[list[Any], list[str]] = ([], [])
    for action in lane.actions:
        left, right = action.start_s / size, action.end_s / size
        low = row + _HEIGHT / 2
        polygons, faces = hatched if plan.places[action.place].kind == "eval" else plain
        for job, share in _parts(action, plan, indices):
            high = low - share * _HEIGHT
            polygons.append([(left, low), (right, low), (right, high), (left, high)])
            faces.append(_colour(action, job))
            low = high
    # White edges, or neighbours of one job would look like one block.
    blocks = PolyCollection(plain[0], facecolors=plain[1], edgecolors="white", lw=0.3, zorder=2)
    panel.add_collection(blocks)
    evals = PolyCollection(hatched[0], facecolors=hatched[1], edgecolors="white", lw=0, zorder=2)
    evals.set_hatch("/////")
    panel.add_collection(evals)


def _parts(action: Action, plan: Plan, indices: dict[str, int]) -> list[tuple[int, float]]:
    if action.kind == "step":
        return [(STEP, 1.0)]
    return sorted(shares(plan.places[action.place], plan, indices))


def _colour(action: Action, job: int) -> str:
    if job == STEP:
        return SOFT
    return colours.forward(job) if action.kind == "forward" else colours.backward(job)


def _draw_marks(panel: Any, plan: Plan, lane: Lane, at: tuple[int, float]) -> None:
    row, size = at
    top, bottom = row - _HEIGHT / 2, row + _HEIGHT / 2
    steps = [
        action.end_s / size
        for action in lane.actions
        if action.kind == "backward" and plan.places[action.place].completes
    ]
    panel.vlines(steps, top, bottom, color=INK, lw=0.9, zorder=3)
    panel.scatter(steps, [top + 0.06] * len(steps), s=10, marker="v", color=INK, lw=0, zorder=3)
    noops = [time / size for _, time in lane.noops]
    # On a light ground, or it would not be seen between dark blocks.
    panel.vlines(noops, top, bottom, color=IDLE, lw=2.6, zorder=3)
    panel.vlines(noops, top, bottom, color=SOFT, lw=1, linestyles=(0, (2.5, 1.5)), zorder=3)


def _style(panel: Any, end: float, summary: PlanSummary) -> None:
    size = scale(summary.makespan, summary.unit)[1]
    panel.set_xlim(0, end / size if end > 0 else 1)
    panel.xaxis.set_major_formatter("{x:,.12g}")
    panel.tick_params(length=0, labelsize=8.5, labelcolor=INK)
    panel.xaxis.set_tick_params(length=3, color=EDGE)
    panel.grid(axis="x", color=GRID, lw=0.6)
    panel.set_axisbelow(True)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
    panel.spines["bottom"].set_color(EDGE)


def _name(lane: Lane, summary: PlanSummary) -> str:
    prefix = f"replica {lane.replica}, " if summary.replicas > 1 else ""
    return f"{prefix}stage {lane.stage}"
