"""Writes a run's report: ``report.html`` and ``report.json`` in its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lorafusion.files import write_text_atomic
from lorafusion.reports.figures import figures
from lorafusion.reports.page import page
from lorafusion.reports.reading import read_run

__all__ = ["JSON", "PAGE", "report_at_end", "write_report"]

PAGE, JSON = "report.html", "report.json"


def write_report(folder: Path) -> dict[str, Any]:
    """Write both files; returns what the JSON holds.

    Args:
        folder: The output folder of a run, whatever state it is in.

    Raises:
        OutputError: It is no run's.
        OSError: A file cannot be written.
    """
    reading = read_run(folder)
    found = figures(reading)
    text = json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False)
    write_text_atomic(folder / JSON, text + "\n")
    write_text_atomic(folder / PAGE, page(reading, found))
    return found


def report_at_end(folder: Path) -> tuple[str, ...]:
    """:func:`write_report` at the end of a run: training is done, and nothing is raised.

    Returns:
        A note where it could not be written.
    """
    try:
        write_report(folder)
    except Exception as error:
        return (f"no report was written to {folder}: {str(error) or type(error).__name__}",)
    return ()
