"""``lorafusion bench pipeline``: idle time beside the simulator's, and speed beside flushes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lorafusion.errors import BenchError, LaunchError

FAILED = 1


def bench_pipeline(
    stages: Annotated[
        str, typer.Option(help="Numbers of stages that sleep, one measurement each.")
    ] = "4,8",
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each way.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the figures and a picture.")
    ] = None,
    write: Annotated[
        Path | None, typer.Option(help="The page to put the tables into, between its marks.")
    ] = None,
) -> None:
    """Measure the pipeline on this machine's CPU, a process a stage; some minutes.

    First with stages that sleep as long as the plan says, beside what the simulator predicts for
    the same plan; then six real jobs on two stages of one thread each: together, one after another
    with a flush behind each global batch, and together in deterministic mode, in turns.

    Exit code: 0 measured, 2 bad input; 1 a process ended badly.
    """
    counts = _parse(stages)
    # Both import torch: not before the options are known to be good.
    from lorafusion.bench import pages, pipeline, pipeline_plot, pipeline_table, results
    from lorafusion.bench.pipeline_jobs import JobsStudy
    from lorafusion.bench.pipeline_sleep import SleepStudy

    sleeping = [SleepStudy(count, places=12 * count, rounds=rounds) for count in counts]
    try:
        found = pipeline.measure(sleeping, JobsStudy(rounds=rounds))
    except LaunchError as error:
        typer.secho(f"error: {error}", err=True, fg="red")
        raise typer.Exit(FAILED) from error
    if output is not None:
        path = results.write(found, output)
        pipeline_plot.draw(found, path.with_suffix(".png"))
    if write is not None:
        pages.put_into(write, pipeline_table.MARK, pipeline_table.markdown(found))
    text = json.dumps(found, allow_nan=False) if as_json else pipeline_table.markdown(found)
    typer.echo(text)


def _parse(stages: str) -> list[int]:
    words = [word.strip() for word in stages.split(",")]
    if not all(word.isdecimal() and int(word) >= 2 for word in words):
        raise BenchError(
            f"--stages is {stages!r}; allowed: whole numbers from 2, with commas between them, "
            "such as 4,8."
        )
    return [int(word) for word in words]
