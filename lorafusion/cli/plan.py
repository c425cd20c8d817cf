"""``lorafusion plan FILE``: what a run would be like, planned and simulated without training it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from lorafusion.cli.display import make_console
from lorafusion.cli.plan_what_if import Search, compared
from lorafusion.cli.quiet import quiet_transformers
from lorafusion.errors import ModelError, PlanError
from lorafusion.files import write_text_atomic
from lorafusion.jobs.loading import load_run_file
from lorafusion.jobs.schema import RunSpec
from lorafusion.planner.devices import find_device
from lorafusion.planner.estimate import StageMemory
from lorafusion.planner.machines import Machines
from lorafusion.planner.parts import PartCosts
from lorafusion.planner.queue import JobQueue
from lorafusion.planner.shape import ModelShape
from lorafusion.plans import chrome_trace, gantt_html, gantt_png
from lorafusion.plans.study import Schedule, Study, Wish, study
from lorafusion.plans.summary import summarise

# With and without recomputation, as the file has it.
_RECOMPUTE = {"auto": (False, True), True: (True,), False: (False,)}
PLAN_FILE, PNG_FILE, HTML_FILE, TRACE_FILE = "plan.json", "gantt.png", "gantt.html", "trace.json"


def command(  # noqa: PLR0913 - one argument an option
    file: Annotated[Path, typer.Argument(help="The job file (YAML).")],
    stages: Annotated[int, typer.Option(min=1, help="Pipeline stages.")] = 1,
    replicas: Annotated[int, typer.Option(min=1, help="Pipelines side by side.")] = 1,
    device: Annotated[
        str, typer.Option(help="What each stage runs on: a100, h100, h200, b200, mi300x, cpu.")
    ] = "cpu",
    capacity: Annotated[
        str, typer.Option(help="Tokens of a microbatch; auto: the fastest; default: the file's.")
    ] = "",
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Repeat forwards in the backward to save memory.")
    ] = False,
    compare: Annotated[
        bool, typer.Option(help="Simulate other schedules of the same samples too.")
    ] = True,
    nodes: Annotated[
        int | None, typer.Option(min=1, help="What if: so many nodes. Stages are searched.")
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="What if: so many devices in each node.")
    ] = None,
    tokenizer: Annotated[
        str, typer.Option(help="Folder or hub id of a tokenizer, where the base's folder has none.")
    ] = "",
    profile: Annotated[
        str,
        typer.Option(help="File of `lorafusion profile`; auto: the one kept for machine and base."),
    ] = "",
    any_profile: Annotated[
        bool, typer.Option("--any-profile", help="Use a profile of another machine or base too.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the results.")
    ] = None,
) -> None:
    """Plan a run, simulate it, and draw it. Nothing is trained, and no weights are read.

    Writes plan.json, gantt.png, gantt.html and trace.json (for Perfetto). The times are those of a
    default cost model: assumptions, unless --profile gives what was measured here. With --nodes or
    --gpus all cuts into stages and replicas are compared, the best is drawn, and what-if.json has
    them all. The base then needs no more than a config.json.
    """
    runs_on = find_device(device)
    spec = load_run_file(file)
    tokens = _capacity(capacity or str(spec.capacity))
    quiet_transformers()
    console = make_console(stderr=False)
    folder = output or Path("runs", f"plan-{file.stem}")
    searched = nodes is not None or gpus is not None
    if searched and (stages != 1 or replicas != 1):
        raise PlanError(
            "--stages and --replicas are found by --nodes and --gpus; give the one pair or the "
            "other."
        )
    if profile and (searched or device != "cpu"):
        raise PlanError(
            "--profile is of a machine that was measured, and --device, --nodes and --gpus are "
            "what if; leave one of them out."
        )
    with console.status("reading the base's config") as shown:
        shape = _shape(spec)
        queues = _queues(spec, tokenizer or spec.base_model, shown.update)
        wish = Wish(runs_on, stages, replicas, tokens, recompute, _targets(spec), compare)
        if profile:
            wish = replace(wish, measured=_measured(spec, profile, stages, any_profile))
        if searched:
            machines = Machines(runs_on, nodes or 1, gpus or 1)
            again = (True,) if recompute else _RECOMPUTE[spec.recompute]
            search = Search(queues, shape, machines, again, wish.targets, tokens)
            wish = compared(console, search, spec, folder, shown.update)
        began = time.perf_counter()
        found = study(queues, shape, wish, status=shown.update)
        seconds = time.perf_counter() - began
    _show(console, found, seconds, runs_on.name)
    with console.status("drawing"):
        written = _write(found, folder, title=f"{file.name}, {Path(spec.base_model).name}")
    console.print("\n" + ", ".join(map(str, written)), soft_wrap=True)


def _measured(spec: RunSpec, profile: str, stages: int, any_profile: bool) -> PartCosts:
    from lorafusion.profiling.lookup import measured_parts

    return measured_parts(spec, profile, stages=stages, any_profile=any_profile)


def _capacity(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise PlanError(f"--capacity is {text!r}; allowed: auto, or a number of tokens above 0.")
    return int(text)


def _shape(spec: RunSpec) -> ModelShape:
    from lorafusion.models.load import check_base

    return ModelShape.from_config(check_base(spec.base_model).to_dict(), spec.dtype)


def _queues(spec: RunSpec, tokenizer_of: str, status: Callable[[str], None]) -> list[JobQueue]:
    from lorafusion.profiling.jobs import queues_of

    try:
        return queues_of(spec, status, tokenizer_of=tokenizer_of)
    except ModelError as error:
        raise ModelError(
            f"{error}\nThe lengths of the samples need one: name another with --tokenizer; lengths "
            "are then those that it gives."
        ) from error


def _targets(spec: RunSpec) -> tuple[str, ...] | str:
    """All that any job adapts; a regular expression counts as every linear."""
    named: list[str] = []
    for job in spec.jobs:
        targets = getattr(job.adapter, "target_modules", "all-linear")
        if isinstance(targets, str):
            return "all-linear"
        named += targets
    return tuple(dict.fromkeys(named))


def _write(found: Study, folder: Path, *, title: str) -> Sequence[Path]:
    summary = summarise(found.plan, found.simulation, title=title)
    folder.mkdir(parents=True, exist_ok=True)
    write_text_atomic(folder / PLAN_FILE, found.plan.to_json() + "\n")
    # The picture last: it needs matplotlib, the others nothing.
    drawings = {
        HTML_FILE: gantt_html.write,
        TRACE_FILE: chrome_trace.write,
        PNG_FILE: gantt_png.draw,
    }
    for name, draw in drawings.items():
        draw(folder / name, found.plan, found.simulation, summary)
    return [folder / name for name in (PLAN_FILE, *drawings)]


def _show(console: Console, found: Study, seconds: float, device: str) -> None:
    console.print("\n".join(summarise(found.plan, found.simulation).lines()), highlight=False)
    layers = ", ".join(f"{cut.start}-{cut.stop - 1}" for cut in found.cut)
    best = found.choice.best
    console.print(
        f"\nlayers of the stages: {layers}\n"
        f"capacity: {best.tokens:,} tokens of this mix ({best.capacity_s:.3g} s), the best of "
        f"{len(found.choice.trials)} tried\n"
        f"cost model: {found.cost.source} ({device}); planned in {seconds:.1f} s",
        highlight=False,
    )
    if found.sharing is not None:
        console.print(f"replicas: {found.sharing.why}", highlight=False)
    console.print()
    console.print(memory_table(found.memory))
    if found.plan.alone:
        names = ", ".join(found.plan.alone)
        console.print(f"alone, because company would gain them nothing: {names}", markup=False)
    if found.schedules:
        console.print()
        console.print(_table(found.schedules))


def memory_table(stages: Sequence[StageMemory]) -> Table:
    """A row a kind, a column a stage, and a last column for all of them."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("memory of a stage, GB")
    for index in range(len(stages)):
        table.add_column(f"{index}" if len(stages) > 1 else "", justify="right")
    table.add_column("all" if len(stages) > 1 else "", justify="right")
    rows = {name: [stage.kinds[name] for stage in stages] for name in stages[0].kinds}
    rows["total"] = [stage.total for stage in stages]
    for name, numbers in rows.items():
        whole = [sum(numbers)] if len(stages) > 1 else []
        cells = [f"{number / 1e9:,.2f}" for number in (*numbers, *whole)]
        table.add_row(name, *cells, style="bold" if name == "total" else "")
    return table


def _table(schedules: Sequence[Schedule]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("training samples alone", "microbatches", "no-ops", "seconds", "bubble", "time"):
        table.add_column(title, justify="left" if title.startswith("training") else "right")
    for one in schedules:
        table.add_row(
            one.name,
            f"{one.microbatches:,}",
            f"{one.noops:,}",
            f"{one.makespan_s:,.4g}",
            f"{one.bubble:.1%}",
            f"{one.makespan_s / schedules[0].makespan_s:.2f}x",
        )
    return table
