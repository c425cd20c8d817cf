"""What speed and memory depend on: the number of jobs, a mix of lengths, and where packing pays.

From the root of a checkout, with the demo's base::

    python -m lorafusion.bench.studies jobs --base FOLDER --write docs/performance.md

Every case is a turn of ``lorafusion bench train``: a process of its own that trains as ``lorafusion
train`` does. Cases take turns, in another order each round, and a ratio is taken within a round.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from lorafusion.bench import pages, results, studies_table
from lorafusion.bench.settings import OURS, Settings
from lorafusion.bench.study_cases import STUDIES, Case, Size, Study
from lorafusion.bench.turn import Turn, run_turn
from lorafusion.errors import BenchError
from lorafusion.files import write_text_atomic
from lorafusion.launch.environment import prepare_environment

__all__ = ["main", "run_study", "wrong_losses"]

# Of a loss, between two ways of computing it in float32.
_CLOSE = 1e-4
Say = Callable[[str], None]


def run_study(
    study: Study, base: str, rounds: int, *, size: Size, dtype: str = "float32", say: Say
) -> dict[str, Any]:
    """All cases in turns.

    Args:
        study: Which.
        base: The base of all jobs.
        rounds: Turns of each case.
        size: Of the cases.
        dtype: The base's number format.
        say: Told of each turn.

    Raises:
        TurnError: A turn failed.
    """
    turns: list[dict[str, Any]] = []
    cases = list(study.cases(size))
    with tempfile.TemporaryDirectory(prefix="lorafusion-study-") as work:
        folders = {
            case.name: _prepare(case, base, Path(work, str(i)), dtype, say)
            for i, case in enumerate(cases)
        }
        for number in range(rounds):
            for case, way in _rotated([(c, w) for c in cases for w in c.ways], number):
                turn = Turn(way, number + 1, 0.0)
                log = Path(work, f"{number}.log")
                run_turn(turn, folders[case.name], log, on_step=_nothing)
                say(f"round {number + 1}: {case.name}, {way}: {turn.tokens_per_s:,.0f} tokens/s")
                turns.append(_fields(case, turn))
    return {
        "base": pages.shown_base(base),
        "dtype": dtype,
        "rounds": rounds,
        "cases": [dataclasses.asdict(case) for case in cases],
        "turns": turns,
        "ratios": [_ratio(study, index, turns) for index in range(len(study.ratios))],
    }


def wrong_losses(study: Study, turns: Sequence[Mapping[str, Any]]) -> list[str]:
    """Losses that should be the same and are not; empty where all is well.

    A job has the same losses in each case and way, whatever its company.
    """
    wrong: list[str] = []
    first: dict[tuple[str, int], float] = {}
    for turn in turns:
        for job, step, loss in turn["losses"]:
            if turn["way"] == "peft-sorted" and turn["batches"] > 1:
                continue  # its batches hold other samples
            right = first.setdefault((job, step), loss)
            if not abs(loss - right) <= _CLOSE * abs(right):
                wrong.append(f"{turn['case']}, {turn['way']}: {job} step {step}: {loss}, {right}")
    if study.same_loss:
        means = {
            turn["case"]: statistics.fmean(loss for _, step, loss in turn["losses"] if step == 1)
            for turn in turns
        }
        low, high = min(means.values()), max(means.values())
        if not high - low <= _CLOSE * high:
            wrong.append(f"the same samples have mean losses of {means}")
    return wrong


def _prepare(case: Case, base: str, folder: Path, dtype: str, say: Say) -> Path:
    """What the turns of a case read; returns their folder."""
    from lorafusion.bench.inputs import SPEC_FILE, inputs_folder, write_inputs

    spec = case.spec(base, folder / "data", dtype)
    if case.ways != (OURS,):
        asked = Settings(folder, spec, ("peft",), 1, case.steps, (0.0,), folder)
        write_inputs(asked, folder, status=say)
        return inputs_folder(folder, 0.0)
    spec = spec.model_copy(update={"threads": len(os.sched_getaffinity(0))})
    write_text_atomic(folder / SPEC_FILE, spec.model_dump_json(exclude_unset=True))
    return folder


def _rotated(items: list[tuple[Case, str]], number: int) -> Iterable[tuple[Case, str]]:
    first = number % len(items)
    return items[first:] + items[:first]


def _fields(case: Case, turn: Turn) -> dict[str, Any]:
    noise = turn.noise
    return {
        "case": case.name,
        "way": turn.way,
        "round": turn.round,
        "batches": case.steps,
        "tokens": turn.tokens,
        "seconds": turn.seconds,
        "tokens_per_s": turn.tokens_per_s,
        "peak_rss_mb": turn.peak_rss_mb,
        "other_cores": None if noise is None else noise.other_cores,
        "losses": [[step.job, step.step, step.loss] for step in turn.steps],
    }


def _ratio(study: Study, index: int, turns: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    asked = study.ratios[index]
    key = "peak_rss_mb" if asked.memory else "tokens_per_s"
    found = [
        by_case[asked.over][key] / statistics.fmean(by_case[under][key] for under in asked.under)
        for by_case in _rounds(turns)
    ]
    return {"name": asked.name, "bound": asked.bound, "memory": asked.memory, "rounds": found}


def _rounds(
    turns: Sequence[Mapping[str, Any]],
) -> Iterator[dict[tuple[str, str], Mapping[str, Any]]]:
    for number in dict.fromkeys(turn["round"] for turn in turns):
        here = [turn for turn in turns if turn["round"] == number]
        yield {(turn["case"], turn["way"]): turn for turn in here}


def _nothing(_turn: Turn) -> None:
    """A turn says how it went when it is done."""


def main(
    name: Annotated[str, typer.Argument(help=f"{', '.join(STUDIES)}.", metavar="STUDY")],
    base: Annotated[Path, typer.Option(help="Folder of SmolLM2-135M, as `fetch demo` has it.")],
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each case.")] = 3,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to write the figures into.")
    ] = Path("runs/bench-performance"),
    write: Annotated[
        Path | None, typer.Option("--write", "-w", help="The page to put the table into.")
    ] = None,
) -> None:
    """Measure, write, and print the table. Exit code 1: losses differ that should not."""
    if name not in STUDIES:
        raise typer.BadParameter(f"{name!r} is no study; allowed: {', '.join(STUDIES)}.")
    prepare_environment()
    study = STUDIES[name]
    say = partial(typer.echo, err=True)
    result = results.result(
        study.name, about=study.about, **run_study(study, str(base), rounds, size=Size(), say=say)
    )
    wrong = wrong_losses(study, result["turns"])
    if wrong:
        raise BenchError("\n".join(["cases do not train the same:", *wrong]))
    results.write(result, output)
    if write is not None:
        results.put_into(write, result, studies_table.markdown)
        pages.keep_beside(write, output, (results.file_name(study.name),))
    typer.echo(studies_table.markdown(result))


if __name__ == "__main__":
    typer.run(main)
