"""How planning time and memory grow with the number of samples: 64 jobs, from 10³ to 10⁶ samples.

Each size is measured in processes of its own, which also tell their peak of memory::

    python -m lorafusion.bench.plan_studies scale --output docs/planner --write docs/planner.md
"""

from __future__ import annotations

import json
import math
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorafusion.bench.pages import measured_on, table
from lorafusion.errors import BenchError
from lorafusion.planner.case import Case, CaseJob
from lorafusion.planner.search import plan_run
from lorafusion.planner.verify import find_violations
from lorafusion.planner.windows import next_window

__all__ = [
    "SAMPLES",
    "exponent",
    "in_a_process",
    "make_case",
    "markdown",
    "measure",
    "n_log_n",
    "study",
]

JOBS, STAGES, CAPACITY, BATCH, WINDOW = 64, 8, 8192, 16, 64
MEDIANS, SIGMA, LONGEST = (400, 800, 1200, 700), 0.6, 4096
"""Log-normal lengths: one median after the other in turn, by job."""

SAMPLES = (16, 48, 160, 480, 1600, 5000, 10_000, 15_625)
"""Of each job: 1,024 to a million in all."""


def study() -> dict[str, Any]:
    """Measure every size; the small ones three times, for the medians."""
    sizes = [_measured(samples, rounds=3 if samples <= 1600 else 1) for samples in SAMPLES]
    return {
        "jobs": JOBS,
        "stages": STAGES,
        "capacity": CAPACITY,
        "batch": BATCH,
        "window": WINDOW,
        "sizes": sizes,
        "exponent": exponent(
            [size["samples"] for size in sizes], [size["plan_s"] for size in sizes]
        ),
    }


def markdown(result: Mapping[str, Any]) -> str:
    """The table of a study."""
    head = ["samples", "places", "first window, s", "whole plan, s", "per n·log₂n, ns", "peak, MB"]
    lines = [
        [
            f"{size['samples']:,}",
            f"{size['places']:,}",
            f"{size['window_s']:.2f}",
            f"{size['plan_s']:.1f}",
            f"{1e9 * size['plan_s'] / n_log_n(size['samples']):.0f}",
            f"{size['peak_bytes'] / 1e6:.0f}",
        ]
        for size in result["sizes"]
    ]
    about = (
        f"{result['jobs']} jobs, {result['stages']} stages, batches of {result['batch']}, capacity "
        f"{result['capacity']:,}; seconds of one core; from 10,000 samples on the time grows "
        f"with (n·log n) to the power of {result['exponent']:.2f}"
    )
    return "\n".join([measured_on(result, about), "", *table(head, lines, left=0)])


def n_log_n(samples: int) -> float:
    """What the time is compared with."""
    return samples * math.log2(samples)


def exponent(samples: Sequence[int], seconds: Sequence[float], least: int = 10_000) -> float:
    """Slope of log seconds over log n·log n, by least squares over the sizes from ``least`` on.

    1 where time grows as n·log n does, less where it grows more slowly. Below ``least`` the
    search's fixed effort is most of the time.
    """
    points = [
        (math.log(n_log_n(n)), math.log(s))
        for n, s in zip(samples, seconds, strict=True)
        if n >= least
    ]
    x, y = (statistics.fmean(values) for values in zip(*points, strict=True))
    return sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)


def make_case(samples: int, jobs: int = JOBS) -> Case:
    """The case with so many samples a job; the same each time."""
    rng = random.Random(samples)
    return Case(
        name=f"{jobs} x {samples}",
        stages=STAGES,
        capacity_tokens=CAPACITY,
        jobs=tuple(
            CaseJob(f"job{job}", BATCH, tuple(_lengths(rng, MEDIANS[job % len(MEDIANS)], samples)))
            for job in range(jobs)
        ),
    )


def _lengths(rng: random.Random, median: int, count: int) -> Iterable[int]:
    for _ in range(count):
        yield min(LONGEST, max(1, round(median * rng.lognormvariate(0, SIGMA))))


def measure(samples: int) -> dict[str, Any]:
    """Plan the first window, then everything, in this process, and check it.

    Seconds are of the one core that it runs on, which are those of the clock where nothing else
    runs there. The peak is of the process, with the data and the plan, before the check.
    """
    case = make_case(samples)
    queues, limits = case.queues(), case.limits()
    start = time.process_time()
    next_window(queues, limits, max_places=WINDOW)
    window = time.process_time()
    clock = time.perf_counter()
    plan = plan_run(queues, limits)
    end, clock = time.process_time(), time.perf_counter() - clock
    peak = _peak_bytes()
    violations = find_violations(plan, queues)
    if violations:
        raise BenchError(f"the plan of {case.name} samples breaks its rules: {violations[0]}")
    return {
        "samples": samples * JOBS,
        "places": len(plan.places),
        "noops": sum(place.kind == "noop" for place in plan.places),
        "window_s": window - start,
        "plan_s": end - window,
        "plan_clock_s": clock,
        "peak_bytes": peak,
    }


def _measured(samples: int, *, rounds: int) -> dict[str, Any]:
    runs = [in_a_process(samples) for _ in range(rounds)]
    median = {
        name: statistics.median(run[name] for run in runs)
        for name in ("window_s", "plan_s", "plan_clock_s", "peak_bytes")
    }
    return {**runs[0], **median, "rounds": rounds}


def in_a_process(samples: int) -> dict[str, Any]:
    """What :func:`measure` finds in a process of its own.

    Raises:
        BenchError: It failed; the message has the end of what it said.
    """
    command = [sys.executable, "-m", __name__, str(samples)]
    try:
        return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    except subprocess.CalledProcessError as error:
        raise BenchError(
            f"planning {samples} samples a job failed: {error.stderr.decode()[-400:]}"
        ) from error


def _peak_bytes() -> int:
    """The most memory that the process has had; Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(int(sys.argv[1]))))
