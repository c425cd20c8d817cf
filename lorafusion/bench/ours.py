"""Our side of ``lorafusion bench train``: ``... lorafusion.bench.ours FOLDER [--deterministic]``.

Trains the jobs of ``FOLDER/spec.json`` together, as ``lorafusion train`` does, with metrics,
checkpoints and exported adapters, and says on stdout what ``baseline.py`` says there. The seconds
of a step run from the moment when all jobs are ready to train, so planning and every file written
in between count. The places that were run stay in FOLDER for the limit.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lorafusion.bench.inputs import SPEC_FILE, warm_up_spec
from lorafusion.bench.limit import PLACES_FILE, write_places
from lorafusion.data.dataset import DatasetReport
from lorafusion.errors import LorafusionError
from lorafusion.jobs.schema import RunSpec
from lorafusion.launch.local import StopRequest, run_local
from lorafusion.plans.recorded import read_recording
from lorafusion.training.events import Events
from lorafusion.training.job import StepResult
from lorafusion.training.memory import peak_rss_mb
from lorafusion.training.trace_file import FOLDER as TRACES


class Report(Events):
    """Says what each step did."""

    def __init__(self) -> None:
        self._started = 0.0
        self.tokens: dict[tuple[str, int], int] = {}

    def ready(self, name: str, report: DatasetReport, *, done: int, total_steps: int) -> None:
        """Called for each job; training begins after the last."""
        self._started = time.perf_counter()

    def step(self, name: str, result: StepResult, *, tokens_per_s: float) -> None:
        """One line."""
        self.tokens[name, result.step] = result.tokens
        _say(
            event="step",
            job=name,
            step=result.step,
            loss=result.loss,
            tokens=result.tokens,
            s=time.perf_counter() - self._started,
        )


def main(folder: Path, *, deterministic: bool = False) -> int:
    """Warm up, train, and return the exit code."""
    spec = RunSpec.model_validate_json((folder / SPEC_FILE).read_text())
    if deterministic:
        spec = spec.model_copy(update={"deterministic": True})
    reasons: list[str] = []
    with tempfile.TemporaryDirectory(prefix="lorafusion-bench-") as output:
        report = Report()
        for name, part, events in (
            ("warm-up", warm_up_spec(spec), Events()),
            ("run", spec, report),
        ):
            try:
                result = run_local(
                    part, output=Path(output, name), events=events, stop=StopRequest()
                )
            except LorafusionError as error:
                reasons.append(str(error))
                break
            reasons += [f"{job.name}: {job.reason}" for job in result.jobs if job.reason]
            if reasons:
                break
            gc.collect()  # the base of the warm-up
        if not reasons and not deterministic:
            places = read_recording(Path(output, "run", TRACES), 1).plan.places
            write_places(folder / PLACES_FILE, places, report.tokens)
    for reason in reasons:
        sys.stderr.write(reason + "\n")
    if not reasons:
        _say(event="done", peak_rss_mb=peak_rss_mb())
    return 1 if reasons else 0


def _say(**values: Any) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), deterministic="--deterministic" in sys.argv[2:]))
