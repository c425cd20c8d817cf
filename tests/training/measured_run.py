"""Train FOLDER/spec.json and print the most memory held above the loaded base, in MB.

Run in a process of its own as ``python measured_run.py FOLDER``. The kernel's high-water mark is
set back once the base is loaded, so that what loading took for a moment does not count.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from lorafusion.jobs.schema import RunSpec
from lorafusion.launch.local import StopRequest, run_local
from lorafusion.training.events import Events


class Meter(Events):
    """Notes the memory when the first job is prepared: the base is loaded then."""

    loaded: float | None = None

    def status(self, text: str) -> None:
        if text.startswith("preparing") and self.loaded is None:
            # Imported here so that neither run counts a library as its own.
            import torch.utils.tensorboard  # noqa: F401

            Path("/proc/self/clear_refs").write_text("5")
            self.loaded = memory_mb("VmRSS")


def memory_mb(field: str) -> float:
    """``VmRSS`` (now) or ``VmHWM`` (the most)."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024 / 1e6


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    meter = Meter()
    result = run_local(
        RunSpec.model_validate_json((folder / "spec.json").read_text()),
        output=folder / "out",
        events=meter,
        stop=StopRequest(),
    )
    assert {job.state for job in result.jobs} == {"succeeded"}, result
    assert meter.loaded is not None
    sys.stdout.write(json.dumps({"peak_mb": memory_mb("VmHWM") - meter.loaded}) + "\n")
