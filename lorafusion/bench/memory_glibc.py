"""What glibc's own way with freed memory costs, and what a fixed threshold does, in turns.

From the root of a checkout, with the demo's base::

    python -m lorafusion.bench.memory_glibc --base FOLDER -o docs/memory -w docs/memory.md
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from lorafusion.bench import pages, results
from lorafusion.bench.memory import MMAP_THRESHOLD, measure
from lorafusion.bench.memory_cases import make_spec

__all__ = ["main", "markdown"]

CAPACITY = 2048
WAYS = {"as it comes": None, f"{MMAP_THRESHOLD:,} bytes": MMAP_THRESHOLD}
_STUDY = "glibc"


def turns(base: Path, rounds: int) -> list[dict[str, Any]]:
    """Real training of two steps of three jobs, as in :mod:`lorafusion.bench.memory`."""
    found: list[dict[str, Any]] = []
    ways = list(WAYS)
    for number in range(rounds):
        for way in ways if number % 2 == 0 else reversed(ways):
            with tempfile.TemporaryDirectory(prefix="lorafusion-memory-") as name:
                taken = measure(make_spec(base, CAPACITY, Path(name)), Path(name), WAYS[way])
            found.append({"round": number, "way": way, **taken})
            typer.echo(f"{way}: {taken['peak'] / 1e6:,.0f} MB, {taken['seconds']:.1f} s", err=True)
    return found


def markdown(result: Mapping[str, Any]) -> str:
    """A row a way; medians with their ranges, and ratios of the same round."""
    found = result["turns"]
    about = f"{result['base']}, {result['capacity']:,} tokens; rounds: {result['rounds']}"
    plain = [turn for turn in found if turn["way"] == "as it comes"]
    rows: list[list[str]] = []
    for way in dict.fromkeys(turn["way"] for turn in found):
        here = [turn for turn in found if turn["way"] == way]
        row = [way]
        for name, scale, digits in (("peak", 1e6, 0), ("seconds", 1.0, 1)):
            numbers = [turn[name] / scale for turn in here]
            ratios = [a[name] / b[name] for a, b in zip(here, plain, strict=True)]
            row += [_spread(numbers, digits), _spread(ratios, 2)]
        rows.append(row)
    head = ["threshold", "peak, MB", "of the first", "training, s", "of the first"]
    return "\n".join([pages.measured_on(result, about), "", *pages.table(head, rows)])


def _spread(numbers: Sequence[float], digits: int) -> str:
    low, high = (f"{number:,.{digits}f}" for number in (min(numbers), max(numbers)))
    return f"{median(numbers):,.{digits}f} ({low} to {high})"


def main(
    base: Annotated[Path, typer.Option(help="Folder of SmolLM2-135M, as `fetch demo` has it.")],
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each way.")] = 3,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to write the figures into.")
    ] = Path("runs/bench-memory"),
    write: Annotated[
        Path | None, typer.Option("--write", "-w", help="The page to put the table into.")
    ] = None,
) -> None:
    """Measure, write, and print the table."""
    found = results.result(
        _STUDY, base=base.name, capacity=CAPACITY, rounds=rounds, turns=turns(base, rounds)
    )
    results.write(found, output)
    if write is not None:
        results.put_into(write, found, markdown)
    typer.echo(markdown(found))


if __name__ == "__main__":
    typer.run(main)
