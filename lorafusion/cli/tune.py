"""``lorafusion tune``: finds the kernels' best tiles on the GPU of this machine."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from enum import StrEnum
from types import TracebackType
from typing import Annotated, Self

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from lorafusion.errors import BenchError
from lorafusion.kernels.config_files import TunedFile, read_tuned, to_dict, tuned_path
from lorafusion.kernels.launch_configs import OPS, LaunchConfig
from lorafusion.kernels.tune import TuneShape, Watcher, tune

SHAPES = ("8192x4096x4096", "8192x5120x5120", "8192x8192x8192")


class Dtype(StrEnum):
    """Number formats that share their configurations."""

    HALF = "half"
    FLOAT32 = "float32"


def command(
    shape: Annotated[
        list[str] | None, typer.Option(help="Rows x inputs x outputs of a linear; repeatable.")
    ] = None,
    op: Annotated[
        list[str] | None, typer.Option(help="One op; repeatable. All by default.")
    ] = None,
    rank: Annotated[int, typer.Option(min=1, help="Rank of every adapter.")] = 16,
    jobs: Annotated[int, typer.Option(min=1, help="Adapters that share the rows.")] = 4,
    dtype: Annotated[Dtype, typer.Option(help="Number format of the base.")] = Dtype.HALF,
    again: Annotated[
        bool, typer.Option("--again", help="Search again what was found before.")
    ] = False,
) -> None:
    """Search tile sizes on this GPU, against unfused LoRA and the base's products alone.

    What is found is kept in $LORAFUSION_HOME/kernels, and the ops read it from there; a search that
    was stopped goes on where it was. Exit code: 0 done, 2 no GPU or bad input.
    """
    ops = _ops(op or list(OPS))
    shapes = [_shape(text, jobs, rank, dtype.value) for text in shape or SHAPES]
    gpu, arch, triton = _gpu()
    from lorafusion.bench.tuning import GpuBench

    console = Console(highlight=False)
    tuned = read_tuned(gpu, triton)
    console.print(f"{gpu} ({arch}), triton {triton}; results: {tuned_path(gpu)}", soft_wrap=True)
    with TuneBoard(console) as board:
        bench = GpuBench("cuda")
        tune(shapes, ops, tuned, arch=arch, bench=bench, watcher=board, again=again)


class TuneBoard(Watcher, AbstractContextManager["TuneBoard"]):
    """A bar on a terminal, and a line for each op when it is done."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._failed = 0
        self._bar = Progress(
            BarColumn(20),
            TextColumn("{task.completed}/{task.total} {task.description}", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def begin(self, shape: TuneShape, op: str, count: int) -> None:
        """A bar of as many candidates."""
        self._failed = 0
        self._bar.reset(self._task, total=count, description=f"{op} {shape}")

    def candidate(self, config: LaunchConfig, seconds: float | None, reason: str) -> None:
        """One further; failures are counted, and their reasons stand in the file."""
        self._failed += seconds is None
        self._bar.advance(self._task)

    def end(self, shape: TuneShape, op: str, tuned: TunedFile) -> None:
        """The time against the default's."""
        key, failed = shape.of(op), f"; {self._failed} could not run" if self._failed else ""
        if key not in tuned.best:
            self._console.print(f"{op} {shape}: no candidate could run{failed}", style="yellow")
            return
        times = tuned.seconds[key]
        default = times.get("default")
        gain = f", {default / times['best']:.2f}× the default" if default else ""
        self._console.print(
            f"{op} {shape}: {times['best'] * 1e6:.0f} µs{gain}: {to_dict(tuned.best[key])}{failed}",
            soft_wrap=True,
        )

    def known(self, shape: TuneShape, op: str) -> None:
        """Say so."""
        self._console.print(f"{op} {shape}: found before (--again searches again)")

    def compared(self, shape: TuneShape, seconds: dict[str, float]) -> None:
        """Ours over either."""
        ours = seconds["lorafusion"]
        self._console.print(
            f"{shape}, forward and backward: {ours * 1e6:.0f} µs; unfused LoRA takes "
            f"{seconds['unfused'] / ours:.2f}× as long, the base alone "
            f"{seconds['frozen'] / ours:.2f}×",
            style="bold",
            soft_wrap=True,
        )


def _ops(names: list[str]) -> list[str]:
    unknown = [name for name in names if name not in OPS]
    if unknown:
        raise BenchError(f"--op {unknown[0]!r}; allowed: {', '.join(OPS)}")
    return names


def _shape(text: str, jobs: int, rank: int, dtype: str) -> TuneShape:
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", text):
        raise BenchError(f"--shape {text!r}; allowed: rows, inputs and outputs such as {SHAPES[0]}")
    rows, K, N = map(int, text.split("x"))
    return TuneShape(rows, K, N, jobs, rank, dtype)


def _gpu() -> tuple[str, str, str]:
    """Name, architecture, and triton's version."""
    import torch

    if not torch.cuda.is_available():
        raise BenchError(
            "lorafusion tune needs a GPU, and torch sees none here. `lorafusion doctor` says why; "
            "`lorafusion bench kernels --aot` compiles the kernels without one."
        )
    import triton

    from lorafusion.kernels.launch_configs import architecture

    device = torch.device("cuda", torch.cuda.current_device())
    return torch.cuda.get_device_name(device), architecture(device), triton.__version__
