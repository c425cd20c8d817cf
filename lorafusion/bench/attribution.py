"""Where a step spends its time, beside what the base's matrix products alone would take.

From the root of a checkout, with the demo's base and data::

    python -m lorafusion.bench.attribution --write docs/performance.md

The fullest of the file's first microbatches is run as training runs it, forward, backward and the
steps of its jobs, in turns with its products alone (:mod:`lorafusion.bench.limit`) and with torch's
profiler. The rows' lengths, labels, jobs and ranks are the file's; the tokens are random.
"""

from __future__ import annotations

import json
import re
import resource
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lorafusion.bench import pages, results
from lorafusion.bench.noise import NoiseMeter
from lorafusion.bench.pages import table
from lorafusion.jobs.loading import load_run_file
from lorafusion.jobs.schema import RunSpec
from lorafusion.launch.environment import prepare_environment
from lorafusion.launch.local import pinned_arithmetic
from lorafusion.machine import cores

__all__ = ["main", "markdown", "named", "study"]

_STUDY = "attribution"
# A plan of so many steps of each job has microbatches as full as they get.
_STEPS = 3
_FORWARD, _BACKWARD = "forward", "backward"
_LAYERS, _HEAD = "products of the layers", "products of the head"
LIMITED = (_LAYERS, _HEAD)
"""What the limit consists of."""
_POINTWISE = (("RmsNorm", "norms"), ("Rotary", "rotary positions"), ("Gated", "gated product"))
_PRODUCT = re.compile(r"aten::(linear|mm|addmm_?|matmul)$")


def study(
    spec: RunSpec, rounds: int, say: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Run everything once to warm up, then in turns.

    Args:
        spec: The run. All jobs are taken to have the first one's targets and dropout.
        rounds: Turns.
        say: Told what is being done.
    """
    from lorafusion.adapters.lora import LoraConfig
    from lorafusion.adapters.targets import match_targets
    from lorafusion.bench.limit import Products, linears_with_gradient
    from lorafusion.models.load import load_base
    from lorafusion.profiling.workbench import Workbench

    adapter = spec.jobs[0].adapter
    assert isinstance(adapter, LoraConfig), "of a file for this benchmark"
    probe = _fullest(spec, say)
    counts = probe.counts
    with pinned_arithmetic(spec.threads or cores()):
        say("loading the base")
        base = load_base(spec.base_model, spec.dtype)
        products = Products(base, counts.tokens)
        behind = linears_with_gradient(base, match_targets(base.names, adapter.target_modules))
        bench = Workbench(base, adapter)
        pieces = {
            _LAYERS: lambda: products.layers(counts.tokens, behind),
            _HEAD: lambda: products.head(counts.labelled),
        }
        turns: list[dict[str, Any]] = []
        with bench.placed([probe]) as (place,):
            for number in range(rounds + 1):
                meter = NoiseMeter()
                before = _limit(pieces)
                turn: dict[str, Any] = _plain(lambda: bench.run(place))
                # A machine's speed drifts by a third within a minute: before and behind the step.
                limit = {name: (before[name] + took) / 2 for name, took in _limit(pieces).items()}
                turn["limit"] = limit
                turn["operations"] = _profiled(bench, lambda: bench.run(place))
                turn["other_cores"] = meter.read().other_cores
                say(f"round {number}: {turn['seconds']:.2f} s, limit {sum(limit.values()):.2f} s")
                turns.append(turn)
    return {
        "base": pages.shown_base(spec.base_model),
        "dtype": spec.dtype,
        "threads": spec.threads or cores(),
        "rank": adapter.r,
        "dropout": adapter.lora_dropout,
        "microbatch": {
            "tokens": counts.tokens,
            "labelled": counts.labelled,
            "jobs": counts.segments,
        },
        "turns": turns[1:],  # the first has loaded libraries and grown the heap
    }


def named(kind: str, name: str, *, node: bool) -> str:
    """A row of the table, for an event of a kind of :mod:`lorafusion.training.operations`.

    Args:
        kind: Its kind.
        name: Its own.
        node: Whether it lies in a node of autograd, and so in the backward.
    """
    from lorafusion.training import operations

    way = _BACKWARD if node else _FORWARD
    if kind == operations.BASE:
        return _LAYERS
    if kind == operations.HEAD:
        return _HEAD if _PRODUCT.match(name) else "softmax and loss"
    if kind in (operations.ADAPTERS, operations.ATTEND):
        return f"{kind}, {way}"
    if kind == operations.POINTWISE:
        return next((row for part, row in _POINTWISE if part in name), "sums of residuals")
    return "Python and autograd" if kind == operations.OTHER else kind


def markdown(result: Mapping[str, Any]) -> str:
    """The table: seconds of each operation, and what of them is missing from the limit."""
    turns = result["turns"]
    limit = {name: _median(turn["limit"][name] for turn in turns) for name in LIMITED}
    step = _median(turn["seconds"] for turn in turns)
    share = _median(sum(turn["limit"].values()) / turn["seconds"] for turn in turns)
    rows = [
        [name, f"{took:.3f}", f"{took / step:.1%}", _or_none(of), f"{(took - of) / step:.1%}"]
        for name, took in _medians(turns).items()
        for of in [limit.get(name, 0.0)]
    ]
    rows.sort(key=lambda row: -float(row[-1].rstrip("%")))
    total = sum(limit.values())
    last = ["step, without the profiler", f"{step:.3f}", "100%", f"{total:.3f}"]
    rows.append([*last, f"{1 - share:.1%}"])
    where = result["microbatch"]
    about = (
        f"torch {result['versions']['torch']}, {result['dtype']}, {result['threads']} threads; "
        f"{result['base']}, a microbatch of {where['tokens']:,} tokens of {where['jobs']} jobs, "
        f"{where['labelled']} of them labelled, rank {result['rank']} on all linears, dropout "
        f"{result['dropout']:g}; medians of {len(turns)} rounds; other processes kept at most "
        f"{max(turn['other_cores'] or 0.0 for turn in turns):.1f} cores busy"
    )
    head = ["operation", "s", "of the step", "the limit's s", "missing"]
    faults = _median(turn["page_faults"] for turn in turns)
    system = _median(turn["system_s"] / turn["cpu_s"] for turn in turns)
    return "\n".join(
        [
            pages.measured_on(result, about),
            "",
            f"**{share:.0%} of the limit** (paired, median of the rounds).",
            "",
            *table(head, rows),
            "",
            f"Beside this division: {faults:,.0f} page faults a step, {system:.1%} of its CPU time "
            "in the kernel.",
        ]
    )


def _fullest(spec: RunSpec, say: Callable[[str], None]) -> Any:
    """The microbatch with the most tokens, as a probe."""
    from lorafusion.planner.plan import Limits
    from lorafusion.planner.search import plan_run
    from lorafusion.profiling.design import Probe, Segment
    from lorafusion.profiling.jobs import queues_of
    from lorafusion.training.run import AUTO_CAPACITY

    jobs = tuple(job.model_copy(update={"max_steps": _STEPS}) for job in spec.jobs)
    queues = queues_of(spec.model_copy(update={"jobs": jobs}), say)
    capacity = AUTO_CAPACITY if spec.capacity == "auto" else spec.capacity
    places = plan_run(queues, Limits(capacity)).places
    full = max((p for p in places if p.kind == "train"), key=lambda place: place.tokens)
    ranks = {queue.name: queue.rank for queue in queues}
    return Probe(tuple(Segment(ranks[s.job], s.lengths, s.labelled) for s in full.segments))


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _limit(pieces: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    import torch

    with torch.no_grad():
        return {name: _seconds(run) for name, run in pieces.items()}


def _plain(run: Callable[[], object]) -> dict[str, Any]:
    before = resource.getrusage(resource.RUSAGE_SELF)
    seconds = _seconds(run)
    after = resource.getrusage(resource.RUSAGE_SELF)
    system = after.ru_stime - before.ru_stime
    return {
        "seconds": seconds,
        "cpu_s": after.ru_utime - before.ru_utime + system,
        "system_s": system,
        "page_faults": after.ru_minflt - before.ru_minflt,
    }


def _profiled(bench: Any, run: Callable[[], object]) -> dict[str, float]:
    """Seconds by row of the table; all of the step, with the profiler's own time in it."""
    from torch.profiler import ProfilerActivity, profile

    from lorafusion.training.operations import ON_CPU, walk
    from lorafusion.training.ranges import named_ranges

    with profile(activities=[ProfilerActivity.CPU]) as found, named_ranges(bench.stage, _nothing):
        whole = _seconds(run)
    with tempfile.TemporaryDirectory(prefix="lorafusion-profile-") as folder:
        path = Path(folder, "trace.json")
        found.export_chrome_trace(str(path))
        events = json.loads(path.read_bytes())["traceEvents"]
    sums: defaultdict[str, float] = defaultdict(float)
    for event, _ in walk(events, ON_CPU):
        name = named(event.kind, event.name, node=event.node)
        sums[name] += event.own / 1e6
    sums["Python and autograd"] += whole - sum(sums.values())
    return dict(sums)


def _nothing() -> None:
    """Each layer's forward would be counted."""


def _medians(turns: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    names = dict.fromkeys(name for turn in turns for name in turn["operations"])
    return {name: _median(turn["operations"].get(name, 0.0) for turn in turns) for name in names}


def _median(values: Iterable[float]) -> float:
    return statistics.median(values)


def _or_none(seconds: float) -> str:
    return f"{seconds:.3f}" if seconds else ""


def main(
    file: Annotated[Path, typer.Argument(help="The job file.")] = Path("jobs/examples/speed.yaml"),
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each.")] = 5,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to write the figures into.")
    ] = Path("runs/bench-performance"),
    write: Annotated[
        Path | None, typer.Option("--write", "-w", help="The page to put the table into.")
    ] = None,
) -> None:
    """Measure, write, and print the table."""
    prepare_environment()
    found = study(load_run_file(file), rounds, lambda text: typer.echo(text, err=True))
    result = results.result(_STUDY, **found)
    results.write(result, output)
    if write is not None:
        results.put_into(write, result, markdown)
        pages.keep_beside(write, output, (results.file_name(_STUDY),))
    typer.echo(markdown(result))


if __name__ == "__main__":
    typer.run(main)
