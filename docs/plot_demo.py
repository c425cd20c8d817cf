"""Draw docs/demo.png from the demo's metrics: ``python docs/plot_demo.py runs/demo``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from lorafusion.jobs.loading import load_run_file
from lorafusion.training.metrics import read_metrics

ROOT = Path(__file__).parents[1]
TRAIN, HELD_OUT, TEXT = "#9aa7b8", "#c2410c", "#334155"


def draw_job(axes: Axes, records: list[dict[str, Any]], title: str) -> None:
    """Training loss as a line, held-out loss as labelled points."""
    train = [(r["step"], r["loss"]) for r in records if r["kind"] == "train"]
    held_out = [(r["step"], r["loss"]) for r in records if r["kind"] == "eval"]
    axes.plot(*zip(*train, strict=True), color=TRAIN, linewidth=1.8)
    # Points, not a line: between two evaluations nothing was measured.
    axes.plot(*zip(*held_out, strict=True), "o", color=HELD_OUT, zorder=3)
    for step, loss in held_out:
        axes.annotate(
            f"{loss:.2f}", (step, loss), xytext=(0, 9), textcoords="offset points", ha="center",
            color=HELD_OUT, fontsize=10, bbox={"fc": "white", "ec": "none", "pad": 0.6},
        )  # fmt: skip
    axes.set_title(title, fontsize=11, color=TEXT, loc="left")
    axes.set_ylim(0, 1.2 * max(loss for _, loss in train + held_out))
    axes.set_xlabel("step", color=TEXT)
    axes.margins(x=0.08)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=TEXT, labelsize=9)


def main(run: Path) -> None:
    """One panel a job."""
    jobs = load_run_file(ROOT / "jobs" / "examples" / "demo.yaml").jobs
    figure, panels = plt.subplots(1, len(jobs), figsize=(12, 3.1), layout="constrained")
    for axes, job in zip(panels, jobs, strict=True):
        rank = job.adapter.model_dump()["r"]
        draw_job(axes, read_metrics(run / job.name), f"{job.name}, rank {rank}")
    panels[0].set_ylabel("loss, nats per trained token", color=TEXT)
    panels[-1].plot([], [], color=TRAIN, linewidth=1.8, label="training")
    panels[-1].plot([], [], "o", color=HELD_OUT, label="held out")
    panels[-1].legend(frameon=False, fontsize=10, labelcolor=TEXT)
    figure.savefig(ROOT / "docs" / "demo.png", dpi=130)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
