"""Starts the ranks of a run on this machine, through torchrun's own agent."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType

from lorafusion.launch.codes import SIGNALLED
from lorafusion.launch.report import FOLDER_VARIABLE, read_conclusion, read_pids
from lorafusion.training.grid import Grid

FAULT = 1
# For ranks that have not ended although another has crashed: longer than they give themselves.
SHUTDOWN_S = 20


class _Stopped(Exception):
    """A signal came before the ranks could take it, or a second one."""

    def __init__(self, number: int) -> None:
        self.number = number


def launch_here(arguments: Sequence[str], *, grid: Grid, max_restarts: int) -> int:
    """Run Python with these arguments, such as ``-m lorafusion.launch FILE``, on each rank.

    The first SIGINT or SIGTERM goes to rank 0, which stops the run with all state saved; a second
    one kills all ranks.

    Returns:
        What to exit with.
    """
    with tempfile.TemporaryDirectory(prefix="lorafusion-") as name:
        folder = Path(name)
        os.environ[FOLDER_VARIABLE] = name
        try:
            with _signals_to_rank_zero(folder):
                failed = _run_agent(arguments, grid, max_restarts)
        except _Stopped as stopped:
            return SIGNALLED + stopped.number
        finally:
            del os.environ[FOLDER_VARIABLE]
        code = read_conclusion(folder)
    if code is not None:
        return code
    return FAULT if failed else 0


def _run_agent(arguments: Sequence[str], grid: Grid, max_restarts: int) -> bool:
    """Whether it has given up on a rank that crashed."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    _speak_plainly(grid)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=grid.ranks,
        logs_specs=DefaultLogsSpecs(),
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # a free port
        local_addr="localhost",
        max_restarts=max_restarts,
        signals_to_handle="SIGHUP,SIGQUIT",
        shutdown_timeout=SHUTDOWN_S,
    )
    try:
        elastic_launch(config, sys.executable)(*arguments)
    except ChildFailedError:
        return True
    return False


@contextmanager
def _signals_to_rank_zero(folder: Path) -> Generator[None]:
    asked = False

    def pass_on(number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        pid = read_pids(folder).get(0)
        if asked or pid is None:
            _kill(folder)  # first: torchrun would wait for them
            raise _Stopped(number)
        asked = True
        with suppress(ProcessLookupError):
            os.kill(pid, number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _kill(folder: Path) -> None:
    for pid in read_pids(folder).values():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _speak_plainly(grid: Grid) -> None:
    """Of torchrun's own log, only which rank crashed, in our words."""
    for name in list(logging.root.manager.loggerDict):  # each has a level of its own
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.ERROR)
    agent = logging.getLogger("torch.distributed.elastic.multiprocessing.api")
    agent.addFilter(partial(_say_how_it_ended, grid))


def _say_how_it_ended(grid: Grid, record: logging.LogRecord) -> bool:
    """Whether the record is still to be shown: not if it says which rank crashed."""
    arguments = record.args
    if not isinstance(arguments, tuple) or not str(record.msg).startswith("failed (exitcode"):
        return True
    code, rank = arguments[0], arguments[1]
    if not isinstance(code, int) or not isinstance(rank, int):
        return True
    if code != FAULT:  # else it was told to end, or rank 0 has said what it met
        sys.stderr.write(f"{grid.name(rank)} {how_it_ended(code)}\n")
    return False


def how_it_ended(code: int) -> str:
    """An exit code of a child in words; negative: minus the signal."""
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
