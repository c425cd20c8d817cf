"""The whole benchmark: inputs, turns in rotation, and after each turn the results on the disk."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lorafusion.bench import pages
from lorafusion.bench.inputs import JobInputs, inputs_folder, write_inputs
from lorafusion.bench.settings import WAYS, Settings
from lorafusion.bench.summary import Comparison, compare
from lorafusion.bench.turn import Turn, run_turn
from lorafusion.errors import OutputError
from lorafusion.files import write_text_atomic
from lorafusion.machine import describe_machine, versions

RESULT_FILE = "bench.json"
PLOT_FILE = "bench.png"
INPUTS, LOGS = "inputs", "logs"
FORMAT = 1


class Watcher:
    """Told how the benchmark goes; does nothing unless overridden."""

    def status(self, text: str) -> None:
        """What is being prepared."""

    def begin(self, turn: Turn, number: int) -> None:
        """A turn begins, the ``number``-th from 1."""

    def step(self, turn: Turn) -> None:
        """The turn has one more step."""

    def end(self, turn: Turn) -> None:
        """The turn is done."""


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished or interrupted benchmark."""

    settings: Settings
    jobs: tuple[JobInputs, ...]
    turns: tuple[Turn, ...]
    machine: dict[str, Any]
    started: str
    partial: bool

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """One for each dropout that has a whole round."""
        return compare(self.turns)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; a number that is not finite is None."""
        settings = self.settings
        return {
            "format": FORMAT,
            "partial": self.partial,
            "started": self.started,
            "settings": {
                "file": str(settings.file),
                "base_model": pages.shown_base(settings.spec.base_model),
                "dtype": settings.spec.dtype,
                "capacity": settings.spec.capacity,
                "deterministic": settings.spec.deterministic,
                "threads": settings.spec.threads,
                "against": list(settings.against),
                "rounds": settings.rounds,
                "steps": settings.steps,
                "dropouts": list(settings.dropouts),
            },
            "machine": self.machine,
            "versions": versions(),
            "ways": {way: WAYS[way] for way in settings.ways},
            "jobs": [dataclasses.asdict(job) for job in self.jobs],
            "turns": [_turn_fields(turn) for turn in self.turns],
            "comparisons": [dataclasses.asdict(found) for found in self.comparisons],
        }


def run_bench(settings: Settings, watcher: Watcher) -> Result:
    """Measure all ways in turns. What is done stands in ``bench.json`` after every turn.

    Raises:
        OutputError: The output folder cannot be used, or holds an earlier benchmark.
        TurnError: A turn failed. The turns before it are kept.
        LorafusionError: The jobs cannot be trained.
    """
    folder = settings.output
    claim(folder, (RESULT_FILE, PLOT_FILE), overwrite=settings.overwrite)
    jobs = write_inputs(settings, folder / INPUTS, status=watcher.status)
    threads = settings.spec.threads or describe_machine()["cores"]
    spec = settings.spec.model_copy(update={"threads": threads})
    result = Result(
        settings=dataclasses.replace(settings, spec=spec),
        jobs=jobs,
        turns=(),
        machine=describe_machine(),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        partial=True,
    )
    for number, turn in enumerate(turns_of(settings), 1):
        watcher.begin(turn, number)
        log = folder / LOGS / f"{turn.way}-dropout-{turn.dropout:g}-round-{turn.round}.log"
        inputs = inputs_folder(folder / INPUTS, turn.dropout)
        run_turn(turn, inputs, log, on_step=watcher.step)
        assert turn.tokens == sum(job.tokens for job in jobs), "the ways saw different tokens"
        watcher.end(turn)
        result = dataclasses.replace(result, turns=(*result.turns, turn))
        _write(folder, result)
    result = dataclasses.replace(result, partial=False)
    _write(folder, result)
    return result


def turns_of(settings: Settings) -> Iterator[Turn]:
    """ABC, BCA, CAB: each way comes first as often as the others, so drift favours none."""
    ways = settings.ways
    for number in range(settings.rounds):
        for dropout in settings.dropouts:
            first = number % len(ways)
            for way in ways[first:] + ways[:first]:
                yield Turn(way, number + 1, dropout)


def claim(folder: Path, names: Sequence[str], *, overwrite: bool) -> None:
    """Make a folder for results of these names, without those of an earlier benchmark.

    Raises:
        OutputError: The folder cannot be used, or holds some and ``overwrite`` is off.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        earlier = [name for name in names if (folder / name).exists()]
        if earlier and not overwrite:
            raise OutputError(
                f"output folder {folder} holds an earlier benchmark ({', '.join(earlier)}). "
                "Replace it with --overwrite, or choose another folder with --output."
            )
        for name in earlier:
            (folder / name).unlink()
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            f"output folder {folder} cannot be used: {error.strerror or error}; allowed: a folder "
            "that can be written, or a path where one can be made."
        ) from error


def _write(folder: Path, result: Result) -> None:
    text = json.dumps(finite(result.to_dict()), indent=1, allow_nan=False)
    write_text_atomic(folder / RESULT_FILE, text + "\n")


def _turn_fields(turn: Turn) -> dict[str, Any]:
    return {
        **dataclasses.asdict(turn),
        "tokens": turn.tokens,
        "seconds": turn.seconds,
        "tokens_per_s": turn.tokens_per_s,
    }


def finite(value: Any) -> Any:
    """A JSON value without numbers that are not finite: they become None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
