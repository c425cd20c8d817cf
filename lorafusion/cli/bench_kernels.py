"""``lorafusion bench kernels``: the fused linear on a GPU or CPU, or compiled without running."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Protocol, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from lorafusion.errors import BenchError, WrongResultError
from lorafusion.launch.environment import prepare_environment

if TYPE_CHECKING:
    from lorafusion.bench.linear import Timing
    from lorafusion.bench.op_run import Done, OpRun
    from lorafusion.bench.summary import Spread
    from lorafusion.kernels.aot import Outcome

PROBLEMS = 1


class Asked(NamedTuple):
    """What to measure, how often, and where it goes.

    Attributes:
        cpu: The CPU backend.
        quick: Two small cases.
        dtype: The cases of one number format; None: of all.
        rounds: Turns of each way.
        threads: Of torch; None: as many as there are cores.
        folder: Of the results.
        overwrite: Replace earlier ones there.
        page: To put the table into.
    """

    cpu: bool
    quick: bool
    dtype: str | None
    rounds: int
    threads: int | None
    folder: Path
    overwrite: bool
    page: Path | None


class Op(StrEnum):
    """What is measured. All but the first are an :class:`OpBench` in a module of that name."""

    LINEAR = "linear"
    SHARED = "shared"
    LOSS = "loss"
    ATTENTION = "attention"
    ELEMENTWISE = "elementwise"


class OpBench(Protocol):
    """The benchmark of an op."""

    MARK: str
    """Of its table in a page."""
    RESULT_FILE: str

    def run(self, asked: OpRun, done: Done) -> dict[str, Any]:
        """Check that the ways of each case compute the same, and measure them in turns."""
        ...

    def markdown(self, result: dict[str, Any]) -> str:
        """The table."""
        ...


class Dtype(StrEnum):
    """Number formats of the cases."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


def bench_kernels(  # noqa: PLR0913 - one argument an option
    cpu: Annotated[bool, typer.Option("--cpu", help="Measure the CPU backend.")] = False,
    aot: Annotated[
        bool, typer.Option("--aot", help="Compile for six GPUs, and show what the binaries use.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="With --cpu: two small cases in float32.")
    ] = False,
    count: Annotated[bool, typer.Option("--bytes", help="Count bytes; nothing runs.")] = False,
    op: Annotated[
        Op,
        typer.Option(
            help="linear: one linear with its adapters; shared: linears of one input; others: "
            "the rest of a layer, and the loss."
        ),
    ] = Op.LINEAR,
    dtype: Annotated[
        Dtype | None, typer.Option(help="With --cpu: the cases of this number format alone.")
    ] = None,
    write: Annotated[
        Path | None, typer.Option(help="The page to put the table into; figures go beside it.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each way.")] = 30,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of torch; all cores by default.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the results.")] = Path(
        "runs/bench-kernels"
    ),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier benchmark's results.")
    ] = False,
) -> None:
    """Time an op against what it replaces, by default a linear against PEFT's layer.

    On the GPU by default. Writes kernels.json and kernels.png, for another op its own JSON. Exit
    code: 0 measured or compiled, 1 a compiled kernel breaks a limit or results differ, 2 bad input,
    or no GPU.
    """
    if count:
        _count(write)
    elif aot:
        _compile(write)
    else:
        kind = None if dtype is None else dtype.value
        asked = Asked(cpu, quick, kind, rounds, threads, output, overwrite, write)
        if op is Op.LINEAR:
            _measure(asked)
        else:
            bench = importlib.import_module(f"lorafusion.bench.{op.value}")
            _measure_op(cast("OpBench", bench), asked)


def _compile(page: Path | None) -> None:
    _check(("triton",), "pip install triton")
    from lorafusion.bench import aot_table, pages
    from lorafusion.kernels.aot import compile_all, elementwise_requests

    tables = aot_table.requests()
    if page is not None:
        for mark in tables:
            pages.found_in(page, mark)
    # These have no table: there is no product in them.
    requests = [*(one for some in tables.values() for one in some), *elementwise_requests()]
    console = Console(highlight=False)
    with _bar(console) as bar:
        task = bar.add_task("compiling", total=len(requests))

        def done(outcome: Outcome) -> None:
            bar.update(task, advance=1, description=str(outcome.request))
            for problem in outcome.problems:
                console.print(problem, style="red", soft_wrap=True)

        outcomes = compile_all(requests, done=done)
    left = iter(outcomes)
    for mark, some in tables.items():
        table = aot_table.markdown(list(islice(left, len(some))))
        if page is None:
            typer.echo(table)
        else:
            pages.put_into(page, mark, table)
    if page is not None:
        console.print(f"the tables are in {page}", soft_wrap=True)
    if any(outcome.problems for outcome in outcomes):
        raise typer.Exit(PROBLEMS)


def _count(page: Path | None) -> None:
    from lorafusion.bench import layer_bytes, pages, traffic_table

    for mark, table in (
        (traffic_table.MARKS, traffic_table.markdown()),
        (layer_bytes.MARKS, layer_bytes.markdown()),
    ):
        if page is None:
            typer.echo(f"{table}\n")
        else:
            pages.put_into(page, mark, table)
    if page is not None:
        layer_bytes.draw(page.with_suffix("") / layer_bytes.PLOT_FILE)


def _measure(asked: Asked) -> None:
    _check(("peft", "matplotlib"), "pip install 'lorafusion[bench]'")
    prepare_environment()
    from lorafusion.bench import kernels_table, pages
    from lorafusion.bench.kernels import PLOT_FILE, RESULT_FILE, Plan, run
    from lorafusion.bench.kernels_plot import draw
    from lorafusion.bench.pages import measured_on

    if asked.page is not None:
        pages.found_in(asked.page, kernels_table.MARK)
    _prepare_torch(asked)
    console = Console(highlight=False)
    plan = Plan.cpu(quick=asked.quick, dtype=asked.dtype) if asked.cpu else Plan.gpu()
    folder = asked.folder
    with _bar(console) as bar:
        task = bar.add_task("", total=len(plan.cases))

        def done(timing: Timing) -> None:
            bar.advance(task)
            console.print(f"\n{timing.case}", style="bold")
            console.print(_table(timing, bounded=asked.cpu))

        try:
            result = run(
                plan, rounds=asked.rounds, folder=folder, overwrite=asked.overwrite, done=done
            )
        except WrongResultError as error:
            typer.secho(f"error: {error}", err=True, fg="red")
            raise typer.Exit(PROBLEMS) from error
    draw(result, folder / PLOT_FILE)
    about = f"torch {result['versions']['torch']}, rounds: {asked.rounds}"
    console.print(f"\n{measured_on(result, about)}", soft_wrap=True)
    console.print(f"{folder / RESULT_FILE}, {folder / PLOT_FILE}", soft_wrap=True)
    if asked.page is not None:
        pages.put_into(asked.page, kernels_table.MARK, kernels_table.markdown(result))
        pages.keep_beside(asked.page, folder, (RESULT_FILE, PLOT_FILE))


def _measure_op(bench: OpBench, asked: Asked) -> None:
    prepare_environment()
    from lorafusion.bench import op_run, pages

    if asked.page is not None:
        pages.found_in(asked.page, bench.MARK)
    _prepare_torch(asked)
    console = Console(highlight=False)

    def done(case: object, ratios: Mapping[str, Spread]) -> None:
        found = ", ".join(f"{way} {op_run.spread(vars(ratio))}" for way, ratio in ratios.items())
        console.print(f"{case}; over ours: {found}", soft_wrap=True)

    device = "cpu" if asked.cpu else "cuda"
    run = op_run.OpRun(device, asked.rounds, asked.folder, asked.overwrite, asked.quick)
    try:
        result = bench.run(run, done)
    except WrongResultError as error:
        typer.secho(f"error: {error}", err=True, fg="red")
        raise typer.Exit(PROBLEMS) from error
    console.print(f"{asked.folder / bench.RESULT_FILE}", soft_wrap=True)
    if asked.page is not None:
        pages.put_into(asked.page, bench.MARK, bench.markdown(result))
        pages.keep_beside(asked.page, asked.folder, (bench.RESULT_FILE,))


def _prepare_torch(asked: Asked) -> None:
    import torch

    if asked.threads is not None:
        torch.set_num_threads(asked.threads)
    if not asked.cpu and not torch.cuda.is_available():
        raise BenchError(
            "torch sees no GPU here (`lorafusion doctor` says why). Without one: --cpu measures "
            "the CPU backend, --aot compiles the kernels."
        )


def _table(timing: Timing, *, bounded: bool) -> Table:
    from lorafusion.bench.kernels import lines

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("time of", no_wrap=True)
    table.add_column("over", no_wrap=True)
    table.add_column("median", justify="right")
    table.add_column("range", justify="right", no_wrap=True)
    table.add_column("aim", no_wrap=True)
    for line in lines(timing, bounded=bounded):
        spread, bound = line.spread, line.bound
        verdict = "" if bound is None else ("kept" if bound.holds(spread.median) else "missed")
        table.add_row(
            line.one,
            line.other,
            f"{spread.median:.2f}",
            f"{spread.low:.2f}..{spread.high:.2f}",
            "" if bound is None else f"{bound}: {verdict}",
            style="yellow" if verdict == "missed" else "",
        )
    return table


def _bar(console: Console) -> Progress:
    return Progress(
        BarColumn(20),
        TextColumn("{task.completed}/{task.total} {task.description}", markup=False),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _check(packages: Sequence[str], remedy: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise BenchError(f"this needs {', '.join(missing)}: {remedy}")
