"""What a benchmark is to measure: the ways to train, and how often."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorafusion.errors import BenchError
from lorafusion.jobs.schema import RunSpec

OURS, DETERMINISTIC, LIMIT = "lorafusion", "lorafusion-deterministic", "limit"
TOGETHER = (OURS, DETERMINISTIC, LIMIT)
"""Ways that take all jobs at once; in the others one job follows another."""
NO_BASELINES = TOGETHER
"""Ways that nobody else trains."""
RIVALS = {
    "peft": ("peft-padded", "peft-sorted"),
    "trl": ("trl",),
    "deterministic": (DETERMINISTIC,),
}
"""What can be measured against -> its ways."""
WAYS = {
    OURS: "all jobs together, packed without padding",
    "peft-padded": "one job after another, batches padded to their longest sample",
    "peft-sorted": "one job after another, batches by length, no mask, logits at labels only",
    "trl": "one job after another, TRL's SFTTrainer, batches by length",
    DETERMINISTIC: "ours, with `deterministic: true`",
    LIMIT: "the frozen base's matrix products of ours, and nothing else",
}
NEEDED = {
    "peft": ("peft",),
    "trl": ("peft", "trl", "accelerate", "datasets"),
    "deterministic": (),
}
MARK = "bench: train"
"""Of the tables in a page."""
REMEDY = "pip install 'lorafusion[bench]'"


@dataclass(frozen=True)
class Settings:
    """One benchmark.

    Attributes:
        file: The job file.
        spec: What it says, with the number format of this benchmark.
        against: Names of ``RIVALS``.
        rounds: Turns of each way at each dropout.
        steps: Most optimizer steps of a job.
        dropouts: The adapters' dropout, one comparison each.
        output: Where results go.
        overwrite: Replace an earlier benchmark's results there.
    """

    file: Path
    spec: RunSpec
    against: tuple[str, ...]
    rounds: int
    steps: int
    dropouts: tuple[float, ...]
    output: Path
    overwrite: bool = False

    @property
    def ways(self) -> tuple[str, ...]:
        """Ours first, which leaves the places that the limit runs; then the others'."""
        return (OURS, *(way for rival in self.against for way in RIVALS[rival]), LIMIT)


def parse_against(text: str) -> tuple[str, ...]:
    """``peft,trl`` as names, each once.

    Raises:
        BenchError: A name is unknown, or none is given.
    """
    names = _parts(text)
    unknown = [name for name in names if name not in RIVALS]
    if unknown or not names:
        raise BenchError(
            f"--against {text!r}: {', '.join(map(repr, unknown)) or 'nothing'} cannot be measured "
            f"against; allowed: {', '.join(RIVALS)}, or several with commas between them."
        )
    return names


def parse_dropouts(text: str) -> tuple[float, ...]:
    """``0,0.05`` as numbers, each once.

    Raises:
        BenchError: One is not a number in 0 <= p < 1, or none is given.
    """
    try:
        values = tuple(dict.fromkeys(float(part) for part in _parts(text)))
    except ValueError:
        values = ()
    if not values or not all(0 <= value < 1 for value in values):
        raise BenchError(
            f"--dropout {text!r}; allowed: numbers from 0 to below 1 with commas between them, "
            "such as 0,0.05."
        )
    return values


def check_packages(against: Sequence[str]) -> None:
    """See that everything the benchmark imports is installed, before anything runs.

    Raises:
        BenchError: A package is missing.
    """
    needed = dict.fromkeys(("matplotlib", *(p for rival in against for p in NEEDED[rival])))
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise BenchError(f"the benchmark needs {', '.join(missing)}: {REMEDY}")


def _parts(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
