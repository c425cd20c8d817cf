"""The planner as a process: ``python -m lorafusion.planner.worker [PID OF ITS PARENT]``.

Reads a :class:`lorafusion.planner.request.Request` a line from stdin and answers each with a line
on stdout, until stdin ends or its parent does. See :mod:`lorafusion.planner.ahead` for the other
side.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import suppress

from lorafusion.errors import PlanError
from lorafusion.planner.request import Request, write_error

__all__ = ["answer", "main"]

NICENESS = 10
"""Training goes first: it has the whole window until the answer is needed."""

WATCH_S = 1.0
"""Seconds between two looks at the parent."""


def main() -> None:
    """Answer until stdin ends."""
    # Signals to the whole group are for the parent to decide on: it ends stdin when it has.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # nobody reads: end without a traceback
    os.nice(NICENESS)
    # What a library prints must not get among the answers.
    answers = os.fdopen(os.dup(1), "wb")
    with suppress(OSError):  # there may be no stderr
        os.dup2(2, 1)
    if len(sys.argv) > 1:
        threading.Thread(target=_end_with, args=(int(sys.argv[1]),), daemon=True).start()
    for line in sys.stdin.buffer:
        answers.write(answer(line.decode()).encode() + b"\n")
        answers.flush()


def answer(line: str) -> str:
    """The plan that a request asks for, or why there is none."""
    try:
        return Request.from_json(line).plan().to_json()
    except PlanError as error:
        return write_error(str(error))


def _end_with(parent: int) -> None:
    """End this process once the parent has.

    The end of stdin does not tell it for certain: a process that the parent has forked holds the
    other end of the pipe too.
    """
    while os.getppid() == parent:
        time.sleep(WATCH_S)
    os._exit(1)


if __name__ == "__main__":
    main()
