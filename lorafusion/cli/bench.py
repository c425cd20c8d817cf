"""``lorafusion bench``: measures our training against others', on this machine, in one run."""

from __future__ import annotations

import signal
from collections.abc import Generator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from lorafusion.bench import pages
from lorafusion.bench.settings import MARK, Settings, check_packages, parse_against, parse_dropouts
from lorafusion.cli.bench_kernels import bench_kernels
from lorafusion.cli.bench_pipeline import bench_pipeline
from lorafusion.cli.bench_plan import bench_plan
from lorafusion.errors import TurnError
from lorafusion.jobs.loading import load_run_file
from lorafusion.launch.codes import SIGNALLED
from lorafusion.launch.environment import prepare_environment

FAILED = 1

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)


@app.callback()
def command() -> None:
    """Measure speed, always against something, in turns, in one run."""


app.command("kernels")(bench_kernels)
app.command("pipeline")(bench_pipeline)
app.command("plan")(bench_plan)


class Dtype(StrEnum):
    """Number formats of the base."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT64 = "float64"


@app.command("train")
def bench_train(  # noqa: PLR0913 - one argument an option
    file: Annotated[Path, typer.Argument(help="The job file (YAML).")],
    against: Annotated[
        str,
        typer.Option(
            help="What to measure against: peft, trl, deterministic, or several with commas."
        ),
    ] = "peft",
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each way at each dropout.")] = 2,
    steps: Annotated[int, typer.Option(min=1, help="Most optimizer steps of a job.")] = 2,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Number format of the base, instead of the file's.")
    ] = None,
    dropout: Annotated[
        str, typer.Option(help="Dropout of all adapters, one comparison each.")
    ] = "0,0.05",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the results.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier benchmark's results.")
    ] = False,
    write: Annotated[
        Path | None,
        typer.Option(help="The page to put the table into; the figures go beside it."),
    ] = None,
) -> None:
    """Train a file's jobs together, and one after another with PEFT or TRL, in turns.

    Writes bench.json and bench.png. `--write docs/PAGE.md` puts the table between the page's marks,
    and copies both into docs/PAGE. Exit code: 0 measured, 1 a turn failed or losses differ, 2 bad
    input, 130 or 143 stopped by SIGINT or SIGTERM; what was measured before is kept and marked as
    partial.
    """
    rivals = parse_against(against)
    dropouts = parse_dropouts(dropout)
    check_packages(rivals)
    spec = load_run_file(file)
    if dtype is not None:
        spec = spec.model_copy(update={"dtype": dtype.value})
    folder = output or Path("runs", f"bench-{file.stem}")
    settings = Settings(file, spec, rivals, rounds, steps, dropouts, folder, overwrite)
    if write is not None:
        pages.found_in(write, MARK)
    prepare_environment()  # the turns inherit it, all of them
    with _termination_as_interrupt():
        try:
            _measure(settings, write)
        except TurnError as error:
            typer.secho(f"error: {error}", err=True, fg="red")
            _say_what_is_kept(folder)
            raise typer.Exit(FAILED) from error
        except _Interrupted as error:
            typer.echo(f"stopped by {signal.Signals(error.number).name}", err=True)
            _say_what_is_kept(folder)
            raise typer.Exit(SIGNALLED + error.number) from error


def _measure(settings: Settings, page: Path | None) -> None:
    # Importing torch and transformers takes seconds: not before the file is known to be good.
    from lorafusion.bench.agreement import wrong_losses
    from lorafusion.bench.pages import measured_on
    from lorafusion.bench.plot import draw
    from lorafusion.bench.run import PLOT_FILE, RESULT_FILE, run_bench
    from lorafusion.bench.train_table import markdown
    from lorafusion.cli.bench_display import BenchBoard, show_result
    from lorafusion.cli.display import make_console
    from lorafusion.cli.quiet import quiet_transformers

    quiet_transformers()
    console = make_console(stderr=False)
    with BenchBoard(settings, console) as board:
        result = run_bench(settings, board)
    draw(result, settings.output / PLOT_FILE)
    show_result(console, result)
    document = result.to_dict()
    about = f"torch {document['versions']['torch']}, {settings.spec.dtype}"
    console.print(f"\n{measured_on(document, about)}", soft_wrap=True)
    results = f"{settings.output / RESULT_FILE}, {settings.output / PLOT_FILE}"
    console.print(results, soft_wrap=True)
    if page is not None:
        pages.put_into(page, MARK, markdown(document))
        pages.keep_beside(page, settings.output, (RESULT_FILE, PLOT_FILE))
    wrong = wrong_losses(result.comparisons, settings.spec.dtype)
    if wrong:
        typer.secho("error: the ways do not train the same", err=True, fg="red")
        for line in wrong:
            typer.secho(line, err=True, fg="red")
        raise typer.Exit(FAILED)


def _say_what_is_kept(folder: Path) -> None:
    kept = folder / "bench.json"
    if kept.exists():
        typer.echo(f"the turns before it are kept in {kept}, marked as partial", err=True)


class _Interrupted(BaseException):
    """SIGINT or SIGTERM has come; not an Exception, so that nothing on the way takes it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def _termination_as_interrupt() -> Generator[None]:
    """Both signals unwind the stack, which ends the turn's process."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        raise _Interrupted(number)

    previous = {
        number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
