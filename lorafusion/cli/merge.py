"""``lorafusion merge --adapter DIR --output DIR``: one full model of base and adapter."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lorafusion.cli.quiet import quiet_transformers


class Dtype(StrEnum):
    """Number formats of a merged model."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT64 = "float64"


def command(
    adapter: Annotated[
        Path, typer.Option(help="The adapter's folder, ours or PEFT's, or a job's folder.")
    ],
    output: Annotated[Path, typer.Option(help="Folder of the full model; new or empty.")],
    base_model: Annotated[
        str | None, typer.Option(help="Folder or hub id of the base, if not the adapter's own.")
    ] = None,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Number format of the weights. Default: the base's own.")
    ] = None,
) -> None:
    """Write base and adapter as one full model in safetensors, with config and tokenizer."""
    from lorafusion.merging import merge

    quiet_transformers()
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    with console.status("starting") as status:
        shown = status.update if console.is_terminal else console.print
        result = merge(adapter, output, base_model=base_model, dtype=dtype, report=shown)
    if result.unused:
        console.print(
            f"note: {len(result.unused)} tensors of the base's files are not used by the model and "
            f"left out, such as {result.unused[0]}"
        )
    typer.echo(f"{result.folder}: {result.modules} linears merged, weights in {result.dtype}")
