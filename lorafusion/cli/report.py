"""``lorafusion report DIR``: a run's report, at any time: figures, losses, time, memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lorafusion.errors import LorafusionError, OutputError


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The output folder of a run.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print report.json as well.")] = False,
) -> None:
    """Write report.html and report.json into a run's folder, of a run in any state.

    Exit code: 0, or 2 where DIR is no run's folder or cannot be written.
    """
    from lorafusion.reports.write import JSON, PAGE, write_report

    try:
        found = write_report(folder)
    except LorafusionError:
        raise
    except OSError as error:
        raise OutputError(f"the report cannot be written to {folder}: {error}") from error
    for text in found["missing"]:
        typer.echo(f"note: {text}", err=True)
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False, allow_nan=False))
    else:
        typer.echo(f"{folder / PAGE}\n{folder / JSON}")
