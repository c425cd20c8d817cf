"""What ``make demo`` ends with, as the README shows it: its closing table and its losses.

From the root of a checkout, with the demo's model and data fetched::

    python -m lorafusion.bench.demo -o docs/demo -w README.md
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from lorafusion.bench import canvas, pages, results
from lorafusion.bench.noise import NoiseMeter
from lorafusion.errors import BenchError
from lorafusion.jobs.loading import load_run_file

__all__ = ["MARK", "draw", "main", "markdown", "study"]

MARK = "bench: demo"
FILE = Path("jobs/examples/demo.yaml")
RUN = Path("runs/demo")
SHOWN = "crepe"
"""The job whose answers stand in the page."""
_TRAIN, _HELD_OUT, _TEXT = "#9aa7b8", "#c2410c", "#334155"


def study(file: Path = FILE, run: Path = RUN) -> dict[str, Any]:
    """Run the command that ``make demo`` runs, and keep what it says and what it leaves.

    Raises:
        BenchError: It failed.
    """
    noise = NoiseMeter()
    command = ["train", str(file), "--output", str(run), "--overwrite", "--show-generation"]
    done = subprocess.run(
        [sys.executable, "-m", "lorafusion", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BenchError(f"lorafusion {' '.join(command)} ended with code {done.returncode}")
    read = noise.read()
    spec = load_run_file(file)
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    ranks = {job.name: job.adapter.model_dump()["r"] for job in spec.jobs}
    return {
        "dtype": spec.dtype,
        "other_cores": read.other_cores,
        "closing": closing(done.stdout),
        "tokens_per_s": result["tokens_per_s"],
        "jobs": [
            {"name": job.name, "rank": ranks[job.name], "losses": _losses(run / job.name)}
            for job in spec.jobs
        ],
    }


def closing(text: str) -> str:
    """From the table of jobs to the line of totals, of all that the command has printed."""
    lines = text.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("job  "))
    last = next(i for i, line in enumerate(lines) if "base unchanged" in line)
    return "\n".join(line.rstrip() for line in lines[first : last + 1])


def _losses(folder: Path) -> dict[str, list[list[float]]]:
    """Steps and losses, in training and on held-out samples."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return {
        kind: [[record["step"], record["loss"]] for record in records if record["kind"] == kind]
        for kind in ("train", "eval")
    }


def markdown(result: Mapping[str, Any]) -> str:
    """What was printed, with the answers of one job, and when and where."""
    table, *answers, totals = result["closing"].split("\n\n")
    shown = [one for one in answers if one.startswith(f"{SHOWN}:")]
    threads = result["machine"]["cores"]
    about = f"torch {result['versions']['torch']}, {result['dtype']}, {threads} cores"
    text = "\n\n".join([table, *shown, totals])
    return f"```\n{text}\n```\n\n({pages.measured_on(result, about)[:-1]})"


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Write a PNG: a panel a job, training loss as a line, held-out loss as labelled points."""
    jobs = result["jobs"]
    figure = canvas.make_figure(12, 3.1)
    panels = figure.subplots(1, len(jobs), squeeze=False)[0]
    for panel, job in zip(panels, jobs, strict=True):
        _draw_job(panel, job)
    panels[0].set_ylabel("loss, nats per trained token", color=_TEXT)
    panels[-1].plot([], [], color=_TRAIN, linewidth=1.8, label="training")
    panels[-1].plot([], [], "o", color=_HELD_OUT, label="held out")
    panels[-1].legend(frameon=False, fontsize=10, labelcolor=_TEXT)
    canvas.save(figure, path)


def _draw_job(panel: Any, job: Mapping[str, Any]) -> None:
    train, held_out = job["losses"]["train"], job["losses"]["eval"]
    panel.plot(*zip(*train, strict=True), color=_TRAIN, linewidth=1.8)
    # Points, not a line: between two evaluations nothing was measured.
    panel.plot(*zip(*held_out, strict=True), "o", color=_HELD_OUT, zorder=3)
    for step, loss in held_out:
        panel.annotate(
            f"{loss:.2f}", (step, loss), xytext=(0, 9), textcoords="offset points", ha="center",
            color=_HELD_OUT, fontsize=10, bbox={"fc": "white", "ec": "none", "pad": 0.6},
        )  # fmt: skip
    panel.set_title(f"{job['name']}, rank {job['rank']}", fontsize=11, color=_TEXT, loc="left")
    panel.set_ylim(0, 1.2 * max(loss for _, loss in train + held_out))
    panel.set_xlabel("step", color=_TEXT)
    panel.margins(x=0.08)
    panel.locator_params(axis="x", integer=True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(colors=_TEXT, labelsize=9)


def main(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to write the figures into.")
    ] = Path("runs/bench-demo"),
    write: Annotated[
        Path | None, typer.Option("--write", "-w", help="The page to put the closing table into.")
    ] = None,
) -> None:
    """Run, write, draw, and print what the demo ends with."""
    if write is not None:
        pages.found_in(write, MARK)
    result = results.result("demo", **study())
    path = results.write(result, output)
    draw(result, path.with_suffix(".png"))
    if write is not None:
        pages.put_into(write, MARK, markdown(result))
    typer.echo(markdown(result))


if __name__ == "__main__":
    typer.run(main)
