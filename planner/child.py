"""A process that answers each line on its stdin with one on its stdout."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from threading import Lock

from lorafusion.errors import PlanError

__all__ = ["Child", "worker_command"]

END_S = 5.0
"""Seconds that a process whose pipes are closed may take to end."""


def worker_command() -> tuple[str, ...]:
    """What starts :mod:`lorafusion.planner.worker` as a child of this process."""
    return sys.executable, "-P", "-m", "lorafusion.planner.worker", str(os.getpid())


class Child:
    """Started when it is first asked, and anew when it is asked after it has ended.

    One thread asks; :meth:`kill` may come from another.
    """

    def __init__(self, command: Sequence[str]) -> None:
        """``command``: program and arguments. What it writes to stderr goes to ours."""
        self._command = list(command)
        self._lock = Lock()  # over the two that follow
        self._process: subprocess.Popen[bytes] | None = None
        self._killed = False

    def ask(self, line: str) -> str:
        """What it answers to ``line``, both without their end.

        Raises:
            ChildProcessError: It ended before it had answered, or could not be started: says how.
        """
        process = self._started()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(line.encode() + b"\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = b""
        if not answer.endswith(b"\n"):
            raise ChildProcessError(self._bury(process))
        return answer[:-1].decode(errors="replace")

    def kill(self) -> None:
        """End it for good; who waits for an answer gets an error."""
        with self._lock:
            self._killed = True
            if self._process is not None:
                self._process.kill()

    def close(self) -> None:
        """:meth:`kill`, and wait for the end; nobody may be asking any more."""
        self.kill()
        if self._process is not None:
            self._bury(self._process)

    def _started(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._killed:
                raise PlanError("the planner was closed.")
            if self._process is None:
                try:
                    self._process = _start(self._command)
                except OSError as error:
                    raise ChildProcessError(f"was not started: {error}") from error
            return self._process

    def _bury(self, process: subprocess.Popen[bytes]) -> str:
        """Wait for a process that has ended or is about to; says how it did."""
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with suppress(OSError):  # what could not be written any more
                pipe.close()
        try:
            code = process.wait(timeout=END_S)
        except subprocess.TimeoutExpired:  # its pipes are closed, and yet it goes on
            process.kill()
            code = process.wait()
        with self._lock:
            self._process = None
        return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def _start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    # The child must find the modules that this process would, not those of a folder it starts in.
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )
