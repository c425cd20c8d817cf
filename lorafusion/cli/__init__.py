"""The command line: one file per command, thin: parse, call, show.

A command's file is imported only when that command runs, so that ``--help`` and ``validate`` do
not wait for torch.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

import lorafusion
from lorafusion.errors import JobFileError, LorafusionError

BAD_INPUT = 2
INTERRUPTED = 130

COMMANDS = {
    "train": "Train all jobs of a job file at once over one frozen base.",
    "launch": "Write the file that starts a run on a cluster: Slurm, SkyPilot, Kubeflow, ssh.",
    "serve": "Keep a base loaded, and train the jobs that are submitted for it.",
    "submit": "Put a file's jobs into the store; a server trains them.",
    "status": "Show how submitted jobs stand.",
    "list": "List all submitted jobs, or those in a state.",
    "sweep": "Show a submitted sweep's jobs by their losses, the best marked.",
    "logs": "Show what happened to a submitted job, and its steps.",
    "cancel": "Give submitted jobs up.",
    "pause": "Save submitted jobs and take them out, until they are resumed.",
    "resume": "Let paused jobs go on.",
    "generate": "Answer a prompt with an adapter.",
    "merge": "Write base and adapter as one full model.",
    "export": "Check whether vLLM loads an adapter, and write one that it reads right.",
    "validate": "Report every problem of a job file, and of the data, base and folders it names.",
    "preview": "Show a job's samples as the model sees them, and which tokens are trained.",
    "schema": "Print the JSON schema of job files, for editors.",
    "doctor": "Look at what this machine can do, and what mends what it cannot.",
    "profile": "Measure this machine and base, and say what to run with.",
    "report": "Write a run's report: speed, losses, time, memory; of a run in any state.",
    "plan": "Plan a run and draw it, without training: places, bubble, memory, capacity.",
    "bench": "Measure speed against PEFT and TRL, in turns, in one run.",
    "tune": "Find the kernels' best tiles on this GPU.",
    "fetch": "Fetch weights and data of the demo into $LORAFUSION_HOME.",
}


class _Commands(TyperGroup):
    """Imports a command's file when it runs, and turns a user's mistake into a message."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return name, _load(name) if name in COMMANDS else command, rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except LorafusionError as error:
            show_error(error)
            raise typer.Exit(BAD_INPUT) from error
        except KeyboardInterrupt as error:
            typer.echo("interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from error


def build_app() -> typer.Typer:
    """The ``lorafusion`` command with all its subcommands."""
    app = typer.Typer(
        cls=_Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
    )
    app.callback()(_options)
    for name, text in COMMANDS.items():
        app.command(name, help=text)(_not_loaded)
    return app


def main() -> None:
    """Entry point of ``lorafusion`` and ``python -m lorafusion``."""
    build_app()(prog_name="lorafusion")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"lorafusion {lorafusion.__version__}")
        raise typer.Exit


def _options(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log what is done, and all warnings.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", is_eager=True, callback=_version
        ),
    ] = False,
) -> None:
    """Fine-tune many LoRA adapters at once over one frozen base."""
    del version  # its callback has seen to it
    _log_to_stderr(logging.DEBUG if verbose else logging.WARNING)


def _not_loaded() -> None:
    """Stands for a command in the list of commands."""
    raise AssertionError("a command was run before its file was imported")


def _load(name: str) -> Any:
    module = importlib.import_module(f"lorafusion.cli.{name}")
    app: typer.Typer | None = getattr(module, "app", None)  # a command with subcommands
    if app is None:
        command: Callable[..., None] = module.command
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        app.command(name, help=None)(command)
    return get_command(app)


class _EchoHandler(logging.Handler):
    """Writes where ``sys.stderr`` is now: a live table moves it while it is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        typer.echo(self.format(record), err=True)


def _log_to_stderr(level: int) -> None:
    handler = _EchoHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("lorafusion")
    logger.handlers[:] = [handler]
    logger.setLevel(level)


def show_error(error: LorafusionError) -> None:
    """Print what is wrong on stderr."""
    if not isinstance(error, JobFileError):
        typer.secho(f"error: {error}", err=True, fg="red")
        return
    from lorafusion.cli.problems import show_problems

    show_problems(error.problems, err=True)
    count = len(error.problems)
    typer.echo(f"{error.problems[0].file}: {count} problem{'s' if count > 1 else ''}", err=True)
