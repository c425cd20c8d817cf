"""The planner's memory estimate beside what training takes, on this machine's CPU.

Every cell is a run in a fresh process: real training of two steps of three jobs, full microbatches,
float32, without recomputation. glibc returns what is freed at once (``MALLOC_MMAP_THRESHOLD_``, see
docs/memory.md for what it does otherwise). From the root of a checkout, with the demo's base::

    python -m lorafusion.bench.memory --base FOLDER -o docs/memory -w docs/memory.md
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import lorafusion
from lorafusion.bench import memory_table, results
from lorafusion.bench.memory_cases import BASES, CAPACITIES, MemoryBase, make_base, make_spec
from lorafusion.errors import BenchError
from lorafusion.jobs.schema import RunSpec
from lorafusion.planner.cost import Counts
from lorafusion.planner.default_cost import Setup, default_parts
from lorafusion.planner.devices import find_device
from lorafusion.planner.estimate import StageMemory, estimate_memory
from lorafusion.planner.plan import Limits
from lorafusion.planner.queue import JobQueue
from lorafusion.planner.search import plan_run
from lorafusion.planner.shape import ModelShape

__all__ = ["main", "measure", "predict", "study"]

MMAP_THRESHOLD = 65_536
"""Bytes. Larger blocks are given back when they are freed; else glibc raises it as it goes."""
LIMIT_S = 900
_STUDY = "memory"


def main(
    base: Annotated[Path, typer.Option(help="Folder of SmolLM2-135M, as `fetch demo` has it.")],
    capacity: Annotated[list[int] | None, typer.Option(help="Instead of all capacities.")] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to write the figures into.")
    ] = Path("runs/bench-memory"),
    write: Annotated[
        Path | None, typer.Option("--write", "-w", help="The page to put the table into.")
    ] = None,
) -> None:
    """Measure, write, draw, and print the table."""
    found: dict[str, Any] = {}
    cells: list[dict[str, Any]] = []
    for cell in study(base, capacity or CAPACITIES):
        cells.append(cell)
        found = results.result(_STUDY, mmap_threshold=MMAP_THRESHOLD, cells=cells)
        results.write(found, output)  # each takes minutes
        typer.echo(memory_table.line(cell), err=True)
    memory_table.draw(found, output / results.file_name(_STUDY, "png"))
    if write is not None:
        results.put_into(write, found, memory_table.markdown)
    typer.echo(memory_table.markdown(found))


def study(
    given: Path, capacities: Sequence[int], bases: Sequence[MemoryBase] = BASES
) -> Iterator[dict[str, Any]]:
    """Every base at every capacity, as it is measured."""
    with tempfile.TemporaryDirectory(prefix="lorafusion-memory-") as work:
        folders = {base.name: make_base(base, Path(work, base.name), given) for base in bases}
        for tokens in capacities:
            for name, folder in folders.items():
                place = Path(work, f"{name}-{tokens}")
                place.mkdir()
                spec = make_spec(folder, tokens, place)
                kinds = predict(spec).kinds
                found = measure(spec, place)
                yield {"base": name, "capacity": tokens, "kinds": kinds, "measured": found}


def predict(spec: RunSpec) -> StageMemory:
    """What ``lorafusion plan`` says of this run on one stage: of the plan's fullest microbatch."""
    from lorafusion.models.load import check_base

    assert spec.capacity != "auto"
    device, queues = find_device("cpu"), _queues(spec)
    shape = ModelShape.from_config(check_base(spec.base_model).to_dict(), spec.dtype)
    setup = Setup(ranks=tuple(queue.rank for queue in queues))
    ranks = {queue.name: queue.rank for queue in queues}
    places = plan_run(queues, Limits(spec.capacity)).places
    full = max((Counts.of(place, ranks) for place in places), key=lambda counts: counts.tokens)
    parts = default_parts(shape, device, setup)
    cut = parts.cut(full, stages=1)
    return estimate_memory(shape, device, setup, parts.model(cut), cut, full)[0]


def measure(
    spec: RunSpec, work: Path, threshold: int | None = MMAP_THRESHOLD
) -> Mapping[str, float]:
    """Train in a process of its own: bytes before the base, when loaded at most, and at most.

    Args:
        spec: The run.
        work: A folder for what it leaves.
        threshold: Of glibc; None: as glibc has it.

    Raises:
        BenchError: It failed.
    """
    file = work / "spec.json"
    file.write_text(spec.model_dump_json(), encoding="utf-8")
    ours = str(Path(lorafusion.__file__).parents[1])
    command = [sys.executable, "-m", "lorafusion.bench.memory_turn", str(file), str(work / "run")]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
            env={
                **os.environ,
                "PYTHONPATH": ours,
                "LORAFUSION_HOME": str(work / "home"),
                **({} if threshold is None else {"MALLOC_MMAP_THRESHOLD_": str(threshold)}),
            },
        )
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{spec.base_model}: no end after {LIMIT_S} s") from error
    if done.returncode:
        last = "\n".join(done.stderr.strip().splitlines()[-8:])
        raise BenchError(f"{spec.base_model}: training ended with code {done.returncode}:\n{last}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _queues(spec: RunSpec) -> list[JobQueue]:
    from lorafusion.data.tokenizer import load_tokenizer
    from lorafusion.training.data import JobData
    from lorafusion.training.queues import whole_queue

    tokenizer = load_tokenizer(spec.base_model)
    with tempfile.TemporaryDirectory(prefix="lorafusion-tokens-") as cache:
        return [whole_queue(job, JobData.load(job, tokenizer, Path(cache))) for job in spec.jobs]


if __name__ == "__main__":
    typer.run(main)
