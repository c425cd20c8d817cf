"""Reads a run's folder: of a run that has ended, was killed, or still goes on. All may be missing.

What cannot be read is named in :attr:`Reading.missing`, and the rest is there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from lorafusion.errors import LorafusionError, OutputError
from lorafusion.plans.halves import Halves
from lorafusion.plans.recorded import read_recording
from lorafusion.reports.rank_lines import MemorySample, RankLines, read_rank_lines
from lorafusion.training.metrics import METRICS_FILE, read_metrics
from lorafusion.training.records import Record, parse_record

__all__ = ["JobReading", "Reading", "read_run"]

RESULT, TRACE, FACTS = "result.json", "trace", "run.json"
_BAD = (LorafusionError, OSError, ValueError, TypeError, LookupError, ArithmeticError)


@dataclass(frozen=True, slots=True)
class JobReading:
    """One job.

    Attributes:
        name: The job.
        result: Its entry of ``result.json``; empty while there is none.
        facts: Its entry of ``trace/run.json``; empty where there is none.
        records: Its steps and evaluations.
    """

    name: str
    result: Mapping[str, Any]
    facts: Mapping[str, Any]
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """What a run's folder holds.

    Attributes:
        folder: Of the run.
        result: ``result.json`` of the last session; empty where there is none.
        facts: ``trace/run.json``; empty where there is none.
        jobs: In the order of the result, else of the facts, else by name.
        halves: The last traced session, planned and measured; None without traces.
        memory: Of each stage, in seconds from the session's first forward.
        operations: ``trace/operations-N.json`` by N.
        missing: What cannot be shown, and why.
    """

    folder: Path
    result: Mapping[str, Any]
    facts: Mapping[str, Any]
    jobs: tuple[JobReading, ...]
    halves: Halves | None
    memory: tuple[tuple[MemorySample, ...], ...]
    operations: Mapping[int, Mapping[str, Any]]
    missing: tuple[str, ...]


def read_run(folder: Path) -> Reading:
    """Read what is there.

    Raises:
        OutputError: ``folder`` is no run's.
    """
    _check(folder)
    missing: list[str] = []
    trace = folder / TRACE
    facts = _document(trace / FACTS, missing, "Device, shape and MFU are not known")
    result = _document(folder / RESULT, missing, "The run goes on or was ended from outside")
    if result and _older(folder / RESULT, facts):
        missing.append(f"{RESULT} is of an earlier session and is left out: this one has none yet.")
        result = {}
    lines = _rank_lines(trace, missing)
    halves = _halves(folder, len(lines), missing) if lines else None
    return Reading(
        folder=folder,
        result=result,
        facts=facts,
        jobs=tuple(_jobs(folder, result, facts, missing)),
        halves=halves,
        memory=tuple(_memory(lines, halves)),
        operations=dict(_operations(trace, len(lines), missing)),
        missing=tuple(missing),
    )


def _check(folder: Path) -> None:
    signs = [folder / RESULT, folder / TRACE / FACTS, folder / TRACE / "rank-0.jsonl"]
    if not folder.is_dir():
        raise OutputError(f"{folder} is no folder. Give the output folder of a run.")
    if not any(path.exists() for path in signs) and not any(folder.glob(f"*/{METRICS_FILE}")):
        raise OutputError(
            f"{folder} is no run's output folder: it has neither {RESULT}, nor {TRACE}/, nor a "
            f"job's {METRICS_FILE}. Give the folder that `lorafusion train` wrote to."
        )


def _document(path: Path, missing: list[str], meaning: str) -> dict[str, Any]:
    try:
        found: object = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is no JSON object")
    except FileNotFoundError:
        missing.append(f"There is no {path.parent.name}/{path.name}. {meaning}.")
        return {}
    except (OSError, ValueError) as error:
        missing.append(f"{path} cannot be read: {error}. {meaning}.")
        return {}
    return cast("dict[str, Any]", found)


def _older(result: Path, facts: Mapping[str, Any]) -> bool:
    """Whether the result was written before the session of the facts began."""
    try:
        return result.stat().st_mtime < datetime.fromisoformat(str(facts["started"])).timestamp()
    except (OSError, KeyError, ValueError):
        return False


def _rank_lines(trace: Path, missing: list[str]) -> tuple[RankLines, ...]:
    """Of each rank of the last session; none where rank 0 left none."""
    first = trace / "rank-0.jsonl"
    if not first.exists():
        missing.append(f"There is no {TRACE}/rank-0.jsonl, as with --no-trace: time is not known.")
        return ()
    lead = read_rank_lines(first)
    found = [lead]
    for rank in range(1, lead.stages):
        path = trace / f"rank-{rank}.jsonl"
        found.append(read_rank_lines(path))
        if not path.exists():
            missing.append(f"There is no {TRACE}/{path.name}.")
    return tuple(found)


def _halves(folder: Path, stages: int, missing: list[str]) -> Halves | None:
    try:
        return Halves.of(read_recording(folder / TRACE, stages), folder.resolve().name)
    except _BAD as error:
        missing.append(f"The traces cannot be shown: {str(error) or type(error).__name__}")
        return None


def _memory(
    lines: tuple[RankLines, ...], halves: Halves | None
) -> Iterator[tuple[MemorySample, ...]]:
    starts = [rank.memory[0].at_s for rank in lines if rank.memory]
    origin = halves.run.origin_s if halves else min(starts, default=0.0)
    for rank in lines:
        yield tuple(sample.moved(-origin) for sample in rank.memory)


def _operations(
    trace: Path, stages: int, missing: list[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    for rank in range(stages):
        path = trace / f"operations-{rank}.json"
        if path.exists() and (found := _document(path, missing, "Its operations are left out")):
            yield rank, found


def _jobs(
    folder: Path, result: Mapping[str, Any], facts: Mapping[str, Any], missing: list[str]
) -> Iterator[JobReading]:
    results = {str(job["name"]): job for job in result.get("jobs", ())}
    known = {str(job["name"]): job for job in facts.get("jobs", ())}
    names = list(results or known)
    names += [name for name in known if name not in names]
    if not names:
        names = sorted(path.parent.name for path in folder.glob(f"*/{METRICS_FILE}"))
    for name in names:
        entry, fact = results.get(name, {}), known.get(name, {})
        records = _records(_job_folder(folder, name, entry or fact), name, missing)
        yield JobReading(name, entry, fact, records)


def _job_folder(folder: Path, name: str, entry: Mapping[str, Any]) -> Path:
    """Inside the run's folder, which may have been moved; else where the run says it is."""
    inside, said = folder / name, entry.get("folder")
    return inside if said is None or (inside / METRICS_FILE).exists() else Path(str(said))


def _records(folder: Path, name: str, missing: list[str]) -> tuple[Record, ...]:
    try:
        return tuple(parse_record(name, line) for line in read_metrics(folder))
    except _BAD as error:
        missing.append(f"The metrics of {name} cannot be read: {error}")
        return ()
