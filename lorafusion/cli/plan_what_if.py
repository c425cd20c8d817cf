"""``lorafusion plan FILE --nodes N --gpus G``: which stages and replicas, compared in a table."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lorafusion.files import write_text_atomic
from lorafusion.jobs.schema import RunSpec
from lorafusion.planner.machines import Machines
from lorafusion.planner.queue import JobQueue
from lorafusion.planner.shape import ModelShape
from lorafusion.planner.what_if import Candidate, best_of, search_layouts
from lorafusion.plans.quantities import duration
from lorafusion.plans.study import Wish

__all__ = ["FILE", "Search", "compared"]

FILE = "what-if.json"
# Of a reason in the table.
_SHOWN = 48


@dataclass(frozen=True, slots=True)
class Search:
    """What is searched.

    Attributes:
        queues: All of each job.
        shape: The base.
        machines: What it would run on.
        recompute: Whether layers' forwards are repeated: what to try.
        targets: The linears that have adapters.
        capacity_tokens: Of a microbatch; searched if None.
    """

    queues: Sequence[JobQueue]
    shape: ModelShape
    machines: Machines
    recompute: Sequence[bool]
    targets: tuple[str, ...] | str
    capacity_tokens: int | None = None

    @property
    def tokens(self) -> int:
        """Of all training samples of the run."""
        return sum(sum(batch.lengths) for queue in self.queues for batch in queue.batches)


def compared(
    console: Console, search: Search, spec: RunSpec, folder: Path, status: Callable[[str], None]
) -> Wish:
    """Try all layouts, print and write them; returns what to plan the best with.

    Raises:
        PlanError: None can be used.
    """
    found: list[Candidate] = []
    status(f"stages for {search.machines.count} devices")
    for one in search_layouts(
        search.queues,
        search.shape,
        search.machines,
        search.recompute,
        search.targets,
        search.capacity_tokens,
    ):
        found.append(one)
        status(f"{one.layout.stages} stages tried, of {search.machines.count} devices")
    folder.mkdir(parents=True, exist_ok=True)
    write_text_atomic(folder / FILE, _document(search, found))
    console.print(_table(search, found))
    best = best_of(found)
    console.print()
    console.print("\n".join(_jobs(search, best)), highlight=False, markup=False)
    console.print()
    console.print("\n".join(assumptions(search.machines, spec.dtype)), soft_wrap=True, markup=False)
    console.print()
    layout = best.layout
    return Wish(
        search.machines.device,
        layout.stages,
        layout.replicas,
        best.capacity_tokens,
        layout.recompute,
        search.targets,
        compare=False,
        exact_s=0.0,
        machines=search.machines,
    )


def assumptions(machines: Machines, dtype: str) -> list[str]:
    """What the numbers rest on."""
    device = machines.device
    lines = [
        f"assumed of a {device.name}: peak {device.peak_flops / 1e12:,.0f} TFLOP/s in bfloat16, of "
        f"which products reach {device.gemm_fraction:.0%} and attention "
        f"{device.attention_fraction:.0%}; memory {device.memory_bytes / 1e9:.0f} GB, "
        f"{device.usable_fraction:.0%} of it usable; {device.bandwidth / 1e12:.2f} TB/s, "
        f"{device.bandwidth_fraction:.0%} reached; {device.launch_s * 1e6:.0f} µs a kernel",
        f"links: {device.link / 1e9:.0f} GB/s in a node, {device.network / 1e9:.1f} GB/s between "
        "nodes; where any hop of a pipeline leaves its node, all of its hops are taken to be as "
        "slow; replicas add up adapter gradients in a ring, and nothing hides it",
        "not modelled: tensor parallelism, sharded base weights, experts, contention on the "
        "network, reading of data, checkpoints; a beginning of the run stands for all of it",
    ]
    if dtype != "bfloat16" and device.name != "cpu":
        lines.append(
            f"the file's dtype is {dtype}: its bytes are counted, but the peak is bfloat16's, so "
            "that times are too short; set dtype: bfloat16"
        )
    return lines


def _table(search: Search, found: Sequence[Candidate]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    titles = ("stages", "replicas", "recompute", "capacity", "tokens/s", "per device", "run")
    for title in (*titles, "bubble", "fullest, GB", ""):
        table.add_column(title, justify="left" if title in ("recompute", "") else "right")
    fastest = max(found, key=lambda one: one.tokens_per_s)
    for one in found:
        layout = one.layout
        names = (str(layout.stages), str(layout.replicas), "yes" if layout.recompute else "no")
        if one.refused:
            reason = one.refused if len(one.refused) <= _SHOWN else f"{one.refused[:_SHOWN]}..."
            table.add_row(*names, *[""] * 6, f"does not fit: {reason}", style="dim")
            continue
        table.add_row(
            *names,
            f"{one.capacity_tokens:,}",
            f"{one.tokens_per_s:,.0f}",
            f"{one.tokens_per_s / search.machines.count:,.0f}",
            duration(search.tokens / one.tokens_per_s, "s"),
            f"{one.bubble:.1%}",
            f"{one.fullest / 1e9:,.1f}",
            "best" if one is fastest else "",
            style="bold" if one is fastest else "",
        )
    return table


def _jobs(search: Search, best: Candidate) -> list[str]:
    """Of the best: each job's steps, and what its reduction takes."""
    reductions = dict(best.reduction_s)
    lines = ["with the best:"]
    steps = {queue.name: len(queue.batches) for queue in search.queues}
    for job, step_s in best.job_step_s:
        lines.append(
            f"  {job}: {duration(step_s, 's')} a step, {steps[job]:,} steps"
            + (
                f"; {duration(reductions[job], 's')} of each to add up replicas' gradients"
                if reductions[job]
                else ""
            )
        )
    return lines


def _document(search: Search, found: Sequence[Candidate]) -> str:
    candidates = [{**asdict(one), "memory": [stage.kinds for stage in one.memory]} for one in found]
    facts = {"format": 1, "machines": asdict(search.machines), "run_tokens": search.tokens}
    return json.dumps({**facts, "candidates": candidates}, indent=1, ensure_ascii=False) + "\n"
