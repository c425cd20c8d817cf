"""Ranks of this machine as forks of one process, for what is measured on them.

Importing torch and transformers takes seconds: it is done once, in a process that has not trained.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lorafusion.errors import LaunchError
from lorafusion.launch.world import World

__all__ = ["run_forks", "start_forks"]

FAILED = 1
_SAID = 4000


def start_forks(module: str, arguments: Sequence[str], *, what: str, timeout_s: float) -> Any:
    """Run a module that calls :func:`run_forks`, and return what its rank 0 found.

    Args:
        module: Run as ``python -m MODULE ARGUMENTS... RESULT``.
        arguments: Those before the file for the result.
        what: The name of what is measured, for messages.
        timeout_s: Until its ranks are taken to hang.

    Raises:
        LaunchError: It ended badly, and what it said; or not at all.
    """
    with tempfile.TemporaryDirectory(prefix="lorafusion-ranks-") as folder:
        result = Path(folder, "result.json")
        code, said = _ended([module, *arguments, str(result)], what, timeout_s)
        if code or not result.exists():
            raise LaunchError(f"the processes of {what} ended with code {code}:\n{said[-_SAID:]}")
        return json.loads(result.read_text(encoding="utf-8"))


def _ended(arguments: Sequence[str], what: str, timeout_s: float) -> tuple[int, str]:
    """The code and what was said; whatever happens, none of its ranks is left."""
    with subprocess.Popen(
        [sys.executable, "-m", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a group to end
    ) as process:
        try:
            said = process.communicate(timeout=timeout_s)[1]
        except subprocess.TimeoutExpired as error:
            raise LaunchError(
                f"the processes of {what} were not done after {timeout_s:g} s. Is the machine "
                "busy, or its loopback network blocked?"
            ) from error
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, said


def run_forks(ranks: int, act: Callable[[World], Any], result: Path) -> int:
    """Fork so many ranks of one machine; returns what to exit with.

    Args:
        ranks: How many.
        act: What each does, in its own process. What it returns is written as JSON, unless None.
        result: The file for it.
    """
    import torch

    torch.set_num_threads(1)  # a fork must not need threads that its parent has started
    address, host = f"localhost:{_free_port()}", socket.gethostname()
    children: set[int] = set()
    for rank in range(ranks):
        child = os.fork()
        if not child:
            _act(act, World(rank, ranks, rank, ranks, address, host), result)
        children.add(child)
    return _wait(children)


def _act(act: Callable[[World], Any], world: World, result: Path) -> None:
    """In the fork: never returns."""
    code = FAILED
    try:
        found = act(world)
        if found is not None:
            result.write_text(json.dumps(found), encoding="utf-8")
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _wait(left: set[int]) -> int:
    """Until all have ended; the first that fails ends the others."""
    worst = 0
    while left:
        process, status = os.wait()
        left.discard(process)
        if status and not worst:
            worst = FAILED
            for other in left:
                os.kill(other, signal.SIGTERM)
    return worst


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]
