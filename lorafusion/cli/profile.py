"""``lorafusion profile FILE``: measures this machine and base, and says what to run with."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from lorafusion.cli.display import make_console
from lorafusion.cli.options import File
from lorafusion.cli.quiet import quiet_transformers
from lorafusion.errors import ProfileError
from lorafusion.jobs.loading import load_run_file
from lorafusion.launch.environment import prepare_environment

if TYPE_CHECKING:
    from lorafusion.profiling.advice import Advice, Option
    from lorafusion.profiling.flops import FlopsComparison
    from lorafusion.profiling.profile import Pass
    from lorafusion.profiling.session import Found


def command(  # noqa: PLR0913 - one argument an option
    file: File,
    stages: Annotated[
        str, typer.Option(help="Numbers of pipeline stages to advise on, such as 1,2,4.")
    ] = "1",
    device: Annotated[
        str, typer.Option(help="What to measure: cpu, cuda, or auto: a GPU where there is one.")
    ] = "auto",
    seconds: Annotated[
        float, typer.Option(min=1, help="About how long microbatches are measured.")
    ] = 100.0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Another file to write the profile to.")
    ] = None,
    flops: Annotated[
        bool, typer.Option("--flops", help="Count operations with DeepSpeed's profiler too.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")] = False,
) -> None:
    """Measure microbatches of a file's base on this machine, and advise on how to run its jobs.

    Fits the planner's cost model to forward, backward, loss, step, transfer and activations, keeps
    it for `lorafusion plan --profile auto`, and simulates the file's jobs with it: capacity,
    stages, recomputation, and whether running together pays. Nothing is trained.
    """
    counts = _stages(stages)
    spec = load_run_file(file)
    prepare_environment()
    quiet_transformers()
    # Importing torch and transformers takes seconds: not before the file is known to be good.
    from lorafusion.profiling.profile import profiles_folder, write_profile
    from lorafusion.profiling.session import Wish, profile_run

    # Seconds, and it may be missing: before what takes minutes.
    counted = _count_flops(spec.base_model) if flops else None
    console = make_console(stderr=as_json)
    with _progress(console) as progress:
        found = profile_run(spec, Wish(counts, device, seconds), progress=progress)
    paths = [profiles_folder() / f"{found.profile.key.name}.json"]
    paths += [] if output is None else [output]
    for path in paths:
        write_profile(found.profile, path)
    if as_json:
        advice = dataclasses.asdict(found.advice, dict_factory=_plain)
        profile = json.loads(found.profile.to_json())
        document = {"profile": profile, "advice": advice}
        document |= {} if counted is None else {"flops": counted.to_dict()}
        typer.echo(json.dumps(document, allow_nan=False))
    else:
        _show(console, found)
        if counted is not None:
            console.print()
            console.print(_flops(counted))
        console.print("\n" + ", ".join(map(str, paths)), soft_wrap=True)


def _count_flops(base_model: str) -> FlopsComparison:
    """Of the microbatch that the table of costs is for."""
    from lorafusion.profiling.flops import compare_flops

    return compare_flops(base_model, [250] * 4, [50] * 4)


def _stages(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) >= 1 for word in words):
        raise ProfileError(
            f"--stages is {text!r}; allowed: whole numbers from 1, with commas between them, such "
            "as 1,2,4."
        )
    return tuple(dict.fromkeys(int(word) for word in words))


@contextmanager
def _progress(console: Console) -> Generator[Callable[[str, float], None]]:
    """A bar for each thing that is done; one line each where nobody watches."""
    bar = Progress(
        BarColumn(20),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    tasks: dict[str, TaskID] = {}

    def progress(what: str, share: float) -> None:
        if what not in tasks:
            for task in tasks.values():
                bar.update(task, completed=1.0)
            tasks[what] = bar.add_task(what, total=1.0)
        bar.update(tasks[what], completed=share)

    with bar:
        yield progress


def _show(console: Console, found: Found) -> None:
    profile = found.profile
    console.print(f"measured in {profile.seconds:.0f} s on {profile.key.processor}")
    for one in profile.passes:
        console.print()
        console.print(_costs(one))
        off = f"{one.error:.1%} off at the median, {one.worst:.1%} at most"
        console.print(f"microbatches that were held out of the fit: predicted {off}")
    console.print()
    console.print(_options(found.advice))
    for line in _words(found.advice):
        console.print(line)


def _costs(one: Pass) -> Table:
    """What the parts take, in milliseconds of 1,000 tokens in samples of 250, a fifth labelled."""
    from lorafusion.planner.cost import Counts

    counts = Counts(1000, 4 * 250**2, 200, 2, 1000 * 16)
    parts = one.parts
    threads = f"{one.threads} thread{'s' if one.threads > 1 else ''} a stage"
    table = _titled(f"1,000 tokens in 4 samples of 2 jobs of rank 16, 200 labelled; {threads}")
    for name in ("part", "forward", "backward", "activations"):
        table.add_column(name, justify="left" if name == "part" else "right", no_wrap=True)
    for name, part in (
        (f"each of {parts.layers} layers", parts.layer),
        ("head and loss", parts.head),
    ):
        table.add_row(
            name,
            f"{part.forward(counts) * 1e3:,.1f} ms",
            f"{part.backward(counts) * 1e3:,.1f} ms",
            f"{part.activation(counts) / 1e6:,.1f} MB",
        )
    step = parts.layers * (parts.layer.step_fixed_s + 16 * parts.layer.step_rank_s)
    table.add_row("optimizer step of rank 16", f"{step * 1e3:,.1f} ms", "", "")
    table.add_row("to the next stage", f"{parts.transfer(counts) * 1e3:,.2f} ms", "", "")
    return table


def _titled(title: str | None) -> Table:
    """An empty table with a line above it."""
    return Table(
        title=title,
        title_justify="left",
        title_style="",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        header_style="bold",
    )


def _options(advice: Advice) -> Table:
    table = _titled(None)
    for name in ("stages", "recompute", "capacity", "tokens/s", "bubble", ""):
        table.add_column(name, justify="right" if name else "left", no_wrap=bool(name))
    for option in advice.options:
        best = option is advice.best
        cells = [str(option.stages), "yes" if option.recompute else "no"]
        if option.refused:
            table.add_row(*cells, "-", "-", "-", option.refused, style="dim")
        else:
            cells += [f"{option.capacity:,}", f"{option.tokens_per_s:,.0f}", f"{option.bubble:.1%}"]
            table.add_row(*cells, "best" if best else "", style="bold" if best else "")
    return table


def _flops(found: FlopsComparison) -> Table:
    """DeepSpeed's count of the base's forward beside the formula's, in 10^9."""
    table = _titled("operations of the base's forward over the same 1,000 tokens, in 10^9")
    for name in ("part", "DeepSpeed", "formula"):
        table.add_column(name, justify="left" if name == "part" else "right", no_wrap=True)
    counted, formula = found.counted, found.formula
    for name, theirs, ours in (
        ("layers' linears", counted.linears, formula.linears),
        ("attention, every score", counted.attention, found.whole_attention),
        ("attention, causal", None, formula.attention),
        ("head at labelled rows", counted.head, formula.head),
        ("other", counted.other, None),
    ):
        cells = ("-" if number is None else f"{number / 1e9:,.2f}" for number in (theirs, ours))
        table.add_row(name, *cells)
    return table


def _words(advice: Advice) -> list[str]:
    best = advice.best
    lines = [f"\nrecommended: capacity: {best.capacity}{_more(best)}"]
    if advice.company_pays:
        lines.append(f"together the jobs run {advice.over_alone:.2f} times as fast as one by one")
    else:
        lines.append(
            f"together the jobs run {advice.over_alone:.2f} times as fast as one by one: running "
            "them one after another is as good, and holds fewer adapters at once"
        )
    if advice.alone:
        lines.append(f"alone, because company would gain them nothing: {', '.join(advice.alone)}")
    return lines


def _more(best: Option) -> str:
    recompute = ", recompute: true" if best.recompute else ""
    return f"{recompute}, --stages {best.stages}" if best.stages > 1 else recompute


def _plain(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Ranges as [start, stop]."""
    return {
        name: [[part.start, part.stop] for part in value] if name == "cut" else value
        for name, value in pairs
    }
