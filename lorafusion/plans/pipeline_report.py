"""What is left of a run's traces at its end: a Chrome trace, a page and a picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lorafusion.files import write_text_atomic
from lorafusion.plans import pipeline_png
from lorafusion.plans.halves import Halves
from lorafusion.plans.measured_trace import measured_trace
from lorafusion.plans.pipeline_html import pipeline_page
from lorafusion.plans.recorded import read_recording

__all__ = ["CHROME", "PAGE", "PICTURE", "write_pipeline_report"]

CHROME, PAGE, PICTURE = "chrome.json", "pipeline.html", "pipeline.png"


def write_pipeline_report(folder: Path, stages: int) -> tuple[str, ...]:
    """Write ``chrome.json``, ``pipeline.html`` and ``pipeline.png`` of the last session.

    Whatever goes wrong, nothing is raised: training is done by then.

    Args:
        folder: That of the traces, with the files of all ranks and of the places.
        stages: Pipeline stages; of several replicas the first is drawn.

    Returns:
        A note for each file that could not be written.
    """
    try:
        halves = Halves.of(read_recording(folder, stages), _title(folder))
    except Exception as error:
        return (f"no report of the pipeline was written to {folder}: {_said(error)}",)
    writers: dict[str, Callable[[Path], None]] = {
        CHROME: lambda path: write_text_atomic(path, measured_trace(halves.recording, halves.run)),
        PAGE: lambda path: write_text_atomic(path, pipeline_page(halves)),
        PICTURE: lambda path: pipeline_png.draw(path, halves),
    }
    notes: list[str] = []
    for name, write in writers.items():
        try:
            write(folder / name)
        except Exception as error:
            notes.append(f"{folder / name} was not written: {_said(error)}")
    return tuple(notes)


def _title(folder: Path) -> str:
    """Such as ``sweep: planned and measured``, of the run's output folder."""
    return f"{folder.resolve().parent.name}: planned and measured"


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
