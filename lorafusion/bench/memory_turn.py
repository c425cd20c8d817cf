"""One run of the memory benchmark, in a process of its own: ``... memory_turn SPEC OUTPUT``.

Says on stdout, as JSON, how much the process held before the base was loaded and at most, and how
long it trained.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lorafusion.jobs.schema import RunSpec
from lorafusion.launch.local import StopRequest, run_local
from lorafusion.training.events import Events
from lorafusion.training.memory import held_bytes, peak_rss_mb


class Marks(Events):
    """Looks at the memory when the base is about to be loaded, and when all jobs are ready."""

    def __init__(self) -> None:
        self.runtime = 0
        self.loaded_peak = 0.0

    def status(self, text: str) -> None:
        """Remembers what is held when the base comes next."""
        if text.startswith("loading "):
            self.runtime = _held()

    def ready(self, *_: object, **__: object) -> None:
        """Called for each job; training begins after the last."""
        self.loaded_peak = peak_rss_mb() * 1e6


def main(spec_file: Path, output: Path) -> int:
    """Train, and return the exit code."""
    spec = RunSpec.model_validate_json(spec_file.read_text(encoding="utf-8"))
    marks = Marks()
    result = run_local(spec, output=output, events=marks, stop=StopRequest())
    reasons = [f"{job.name}: {job.reason}" for job in result.jobs if job.reason]
    sys.stderr.writelines(f"{reason}\n" for reason in reasons)
    found = {
        "runtime": marks.runtime,
        "loaded_peak": marks.loaded_peak,
        "peak": peak_rss_mb() * 1e6,
        "seconds": result.training_s,
    }
    sys.stdout.write(json.dumps(found) + "\n")
    return 1 if reasons else 0


def _held() -> int:
    import torch

    return held_bytes(torch.device("cpu"))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
