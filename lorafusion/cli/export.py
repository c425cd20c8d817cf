"""``lorafusion export --adapter DIR``: does vLLM load this adapter, and with which options?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from lorafusion.adapters.folder import CARD_FILE, IN_A_JOB, adapter_folder, read_fields
from lorafusion.adapters.vllm import (
    FOLDABLE,
    Condition,
    base_architecture,
    check_folder,
    serve_command,
)
from lorafusion.errors import OutputError


def command(
    adapter: Annotated[
        Path, typer.Option(help="The adapter's folder, ours or PEFT's, or a job's folder.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            help="Write an adapter there that vLLM reads right: rank_pattern and alpha_pattern "
            "are folded into one rank and alpha, without loss."
        ),
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help="Folder or hub id of the base, if not the adapter's own.")
    ] = None,
) -> None:
    """Check the conditions under which vLLM loads an adapter. Exit code 1 if one does not hold."""
    folder = adapter_folder(adapter)
    base = base_model or str(read_fields(folder).get("base_model_name_or_path") or "")
    architecture = base_architecture(base) if base else None
    conditions = check_folder(folder, architecture)
    _show(folder, conditions)
    if output is not None:
        if any(not c.holds and c.name not in FOLDABLE for c in conditions):
            typer.echo("nothing was written: the conditions above cannot all be met")
            raise typer.Exit(1)
        _write(folder, output, base)
        folder = output
        conditions = check_folder(folder, architecture)
        _show(folder, conditions)
    if not all(condition.holds for condition in conditions):
        raise typer.Exit(1)
    rank = int(read_fields(folder)["r"])
    typer.echo(serve_command(folder, base_model=base, rank=rank, name=_name(folder)))


def _show(folder: Path, conditions: Sequence[Condition]) -> None:
    typer.echo(f"{folder}")
    for condition in conditions:
        mark = "ok " if condition.holds else "not"
        typer.echo(f"  {mark}  {condition.name}: {condition.reason}")


def _name(folder: Path) -> str:
    """What to call the adapter: its folder, or that of its job."""
    place = folder.resolve()
    return place.parent.name if place.name == IN_A_JOB else place.name


def _write(folder: Path, output: Path, base_model: str) -> None:
    from lorafusion.adapters.card import exported_card
    from lorafusion.adapters.peft_format import load_adapter, save_adapter
    from lorafusion.adapters.uniform import uniform

    if output.resolve() == folder.resolve():
        raise OutputError(f"{output} is the adapter itself, which stays. Choose another --output.")
    loaded = load_adapter(folder)
    made = uniform(loaded)._replace(base_model=base_model)
    card = exported_card(
        output.resolve().name, base_model=base_model, source=str(folder), config=made.config
    )
    source_card = folder / CARD_FILE
    if made.modules is loaded.modules and source_card.is_file():
        card = source_card.read_text("utf-8")
    save_adapter(output, made, linears=None, card=card)
