"""``lorafusion bench pipeline``: the pipeline's idle time beside the simulator's, and its speed.

Two studies, each in a set of processes of its own, one a stage, over loopback: stages that sleep
(:mod:`lorafusion.bench.pipeline_sleep`), and small real ones
(:mod:`lorafusion.bench.pipeline_ways`).
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lorafusion.bench import results
from lorafusion.bench.noise import NoiseMeter
from lorafusion.launch.forks import start_forks

if TYPE_CHECKING:
    from lorafusion.bench.pipeline_jobs import JobsStudy
    from lorafusion.bench.pipeline_sleep import SleepStudy

__all__ = ["NAME", "measure", "median", "spread"]

NAME = "pipeline"
# A study takes half a minute or so; ranks that hang end themselves before.
TIMEOUT_S = 1200


@dataclass(frozen=True)
class _Ran:
    figures: dict[str, Any]
    load_before: float
    other_cores: float | None


def measure(sleeping: Sequence[SleepStudy], jobs: JobsStudy | None) -> dict[str, Any]:
    """Run the studies, one after the other.

    Raises:
        LaunchError: A study's processes ended badly or hang; says what they said.
    """
    asleep = [_run({"kind": "sleep", **asdict(study)}) for study in sleeping]
    real = None if jobs is None else _run({"kind": "jobs", **asdict(jobs)})
    return results.result(
        NAME,
        sleeping=[_with_medians(ran) for ran in asleep],
        jobs=None if real is None else _with_ratios(real),
    )


def median(turns: Sequence[Mapping[str, float]], name: str) -> float:
    """Of a figure over the turns."""
    return statistics.median(turn[name] for turn in turns)


def spread(turns: Sequence[Mapping[str, float]], name: str) -> tuple[float, float]:
    """The least and the greatest."""
    return min(turn[name] for turn in turns), max(turn[name] for turn in turns)


def _run(study: Mapping[str, Any]) -> _Ran:
    noise = NoiseMeter()
    figures = start_forks(
        "lorafusion.bench.pipeline_ranks",
        [json.dumps(study)],
        what=f"the study {study['kind']}",
        timeout_s=TIMEOUT_S,
    )
    read = noise.read()
    return _Ran(figures, read.load_before, read.other_cores)


def _with_medians(ran: _Ran) -> dict[str, Any]:
    names = ("seconds", "bubble", "bubble_without_ramp")
    turns = ran.figures["turns"]
    return {
        **ran.figures,
        "median": {name: median(turns, name) for name in names},
        "noise": {"load_before": ran.load_before, "other_cores": ran.other_cores},
    }


def _with_ratios(ran: _Ran) -> dict[str, Any]:
    """Speeds of the jobs together over those of the other ways, round by round."""
    ways = ran.figures["ways"]
    names = ("seconds", "bubble", "tokens_per_s", "replayed_s")
    for way in ways.values():
        way["median"] = {name: median(way["turns"], name) for name in names}
    ours = ways["together"]
    ratios: dict[str, dict[str, Any]] = {}
    for name, way in ways.items():
        if way is ours:
            continue
        rounds = [
            mine["tokens_per_s"] / theirs["tokens_per_s"]
            for mine, theirs in zip(ours["turns"], way["turns"], strict=True)
        ]
        ratios[name] = {
            "measured": statistics.median(rounds),
            "rounds": rounds,
            "predicted": way["predicted"]["seconds"] / ours["predicted"]["seconds"],
        }
    # No model knows what graphs of single samples cost.
    ratios["deterministic"]["predicted"] = None
    return {
        **ran.figures,
        "together_over": ratios,
        "noise": {"load_before": ran.load_before, "other_cores": ran.other_cores},
    }
