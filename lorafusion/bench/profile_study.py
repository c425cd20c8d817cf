"""How well a profile predicts: held-out microbatches, and the capacity it recommends.

From the root of a checkout, on a quiet machine, with the demo's model and data fetched::

    python -m lorafusion.bench.profile_study -o docs/profiling -w docs/profiling.md

First the profile of the demo's jobs in float32. Then the jobs are trained for real at several
capacities, the recommended one among them, in turns.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from lorafusion.bench import pages, results
from lorafusion.bench.noise import NoiseMeter
from lorafusion.bench.pages import measured_on, table
from lorafusion.jobs.loading import load_run_file
from lorafusion.jobs.schema import EvalConfig, RunSpec
from lorafusion.launch.environment import prepare_environment

__all__ = ["MARK", "main", "markdown", "study"]

MARK = "bench: profile"
CAPACITIES = (640, 1280, 2048)
"""Tokens, from the longest sample that a job allows; beside the recommended capacity."""


def study(spec: RunSpec, *, seconds: float, rounds: int, steps: int) -> dict[str, Any]:
    """Profile, then sweep.

    Args:
        spec: The jobs.
        seconds: Of the profile's microbatches.
        rounds: Turns of each capacity.
        steps: Optimizer steps of each job in a turn.
    """
    from lorafusion.profiling.session import Wish, profile_run

    short = _short(spec, steps)
    noise = NoiseMeter()
    # Advised for the run that is swept: how long jobs last weighs in what they can share.
    found = profile_run(short, Wish(seconds=seconds))
    quiet = noise.read()
    one, best = found.profile.passes[0], found.advice.best
    about = f"{found.profile.seconds:.0f} s, {one.error:.1%} off, recommends {best.capacity}"
    typer.echo(f"profile: {about}", err=True)
    turns: list[dict[str, Any]] = []
    capacities = sorted({*CAPACITIES, best.capacity})
    for number in range(rounds):
        first = number * len(capacities) // rounds
        for capacity in capacities[first:] + capacities[:first]:
            turns.append({"round": number, "capacity": capacity, **_turn(short, capacity)})
    return {
        "base": Path(short.base_model).name,
        "dtype": short.dtype,
        "profile_s": found.profile.seconds,
        "threads": one.threads,
        "peak_flops": found.profile.peak_flops,
        "error": one.error,
        "worst": one.worst,
        "probes": [dict(probe) for probe in one.probes],
        "other_cores": quiet.other_cores,
        "recommended": best.capacity,
        "predicted": {str(tokens): rate for tokens, rate in (best.trials or {}).items()},
        "over_alone": found.advice.over_alone,
        "steps": steps,
        "turns": turns,
        "sweep": _sweep(turns, best.capacity),
    }


def _short(spec: RunSpec, steps: int) -> RunSpec:
    cut = {"max_steps": steps, "num_epochs": None, "eval": EvalConfig(), "save_every": None}
    jobs = tuple(job.model_copy(update=cut) for job in spec.jobs)
    return spec.model_copy(update={"jobs": jobs, "dtype": "float32"})


def _turn(spec: RunSpec, capacity: int) -> dict[str, float]:
    from lorafusion.launch.local import run_local
    from lorafusion.launch.stopping import StopRequest
    from lorafusion.training.events import Events

    spec = spec.model_copy(update={"capacity": capacity})
    with tempfile.TemporaryDirectory(prefix="lorafusion-profile-") as folder:
        result = run_local(spec, output=Path(folder), events=Events(), stop=StopRequest())
    assert result.succeeded, [job.reason for job in result.jobs]
    return {"tokens_per_s": result.tokens_per_s, "seconds": result.training_s}


def _sweep(turns: Sequence[Mapping[str, Any]], recommended: int) -> dict[str, Any]:
    """Medians, and how near the recommended capacity comes to the best of each round."""
    rates: dict[int, list[float]] = {}
    for turn in turns:
        rates.setdefault(turn["capacity"], []).append(turn["tokens_per_s"])
    medians = {capacity: median(found) for capacity, found in sorted(rates.items())}
    best = max(medians.values())
    return {
        "median": {str(capacity): rate for capacity, rate in medians.items()},
        "recommended_over_best": medians[recommended] / best,
    }


def markdown(result: Mapping[str, Any]) -> str:
    """The tables of a result."""
    other = result["other_cores"]
    beside = "" if other is None else f", other processes kept {other:.1f} cores busy meanwhile"
    lines = [
        measured_on(result, f"torch {result['versions']['torch']}"),
        "",
        f"`lorafusion profile` of {result['base']} in {result['dtype']} with {result['threads']} "
        f"threads took {result['profile_s']:.0f} s{beside}. Held-out microbatches:",
        "",
        *_held_out(result["probes"]),
        "",
        f"Median size of the errors: **{result['error']:.1%}**, at most {result['worst']:.1%}.",
        "",
        f"The demo's jobs trained for {result['steps']} steps each at several capacities, in "
        f"turns ({len({turn['round'] for turn in result['turns']})} rounds); the profile "
        f"recommended **{result['recommended']}** tokens:",
        "",
        *_capacities(result),
        "",
        f"The recommended capacity reached {result['sweep']['recommended_over_best']:.1%} of the "
        "best median.",
    ]
    return "\n".join(lines)


def _held_out(probes: Sequence[Mapping[str, Any]]) -> list[str]:
    rows: list[list[str]] = []
    for probe in probes:
        if probe["held_out"]:
            took = probe["forward_s"] + probe["backward_s"]
            rank = probe["token_ranks"] / probe["tokens"]
            counts = [f"{probe[name]:.0f}" for name in ("tokens", "labelled", "segments")]
            length = f"{probe['squares'] / probe['tokens']:.0f}"
            off = f"{100 * (probe['predicted_s'] / took - 1):+.1f}%"
            row = [*counts, length, f"{rank:.0f}", f"{took:.3f}", f"{probe['predicted_s']:.3f}"]
            rows.append([*row, off])
    head = ["tokens", "labelled", "jobs", "mean length", "rank", "measured, s", "predicted, s"]
    return table([*head, "off"], rows, left=0)


def _capacities(result: Mapping[str, Any]) -> list[str]:
    rows: list[list[str]] = []
    for capacity, rate in result["sweep"]["median"].items():
        found = [t["tokens_per_s"] for t in result["turns"] if t["capacity"] == int(capacity)]
        name = f"**{capacity}**" if int(capacity) == result["recommended"] else capacity
        rows.append([name, f"{rate:,.0f}", f"{min(found):,.0f} to {max(found):,.0f}"])
    return table(["capacity", "tokens/s", "of which the least and most"], rows, left=0)


def main(
    file: Annotated[Path, typer.Argument(help="The job file.")] = Path("jobs/examples/demo.yaml"),
    seconds: Annotated[float, typer.Option(help="Of the profile's microbatches.")] = 100.0,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each capacity.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of each job.")] = 2,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to write the figures into.")
    ] = Path("runs/bench-profile"),
    write: Annotated[
        Path | None, typer.Option("--write", "-w", help="The page to put the tables into.")
    ] = None,
) -> None:
    """Measure, write, and print the tables."""
    prepare_environment()
    from lorafusion.bench.profile_plot import draw

    found = study(load_run_file(file), seconds=seconds, rounds=rounds, steps=steps)
    result = results.result("profile", **found)
    path = results.write(result, output)
    draw(result, path.with_suffix(".png"))
    if write is not None:
        pages.put_into(write, MARK, markdown(result))
    typer.echo(markdown(result))


if __name__ == "__main__":
    typer.run(main)
