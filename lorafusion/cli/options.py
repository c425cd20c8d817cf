"""Options that `lorafusion train` and the ranks it starts have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorafusion.planner.plan import ReplicaMode

File = Annotated[Path, typer.Argument(help="The job file (YAML).")]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", help="Folder of the run: else output_dir of the file, else runs/FILE."
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from each job's newest checkpoint.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run's results.")]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object at the end, the rest on stderr.")
]
HangTimeout = Annotated[
    float,
    typer.Option(min=1, help="With stages: seconds without any progress that count as a hang."),
]
Mode = Annotated[
    ReplicaMode,
    typer.Option(
        "--replica-mode",
        help="together: every global batch is split over all replicas; spread: each job is on one "
        "of them; auto: what is predicted to be faster.",
    ),
]
Trace = Annotated[
    bool | None,
    typer.Option(
        help="What is kept in OUTPUT/trace: what each rank does when, unless --no-trace; with "
        "--trace torch's profile of some places too.",
        show_default=False,
    ),
]
