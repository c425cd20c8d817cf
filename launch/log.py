"""A log for every rank: its messages, warnings and tracebacks; all output but rank 0's."""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
from pathlib import Path
from typing import TextIO

FOLDER = "logs"


class RankLog:
    """``OUTPUT/logs/rank-N.log``, which earlier starts of the same run have begun."""

    def __init__(self, output: Path, rank: int) -> None:
        """Open it. Where that cannot be, nothing is written: rank 0 says what is wrong there."""
        self.path = output / FOLDER / f"rank-{rank}.log"
        self.file: TextIO | None = None
        self._logger = logging.getLogger("lorafusion.launch")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self.path.open("a", buffering=1, encoding="utf-8")
        except OSError:
            return
        faulthandler.enable(self.file)
        if rank:
            self._take_output(self.file)
        logging.captureWarnings(True)
        handler = logging.StreamHandler(self.file)
        form = f"%(asctime)s rank {rank} %(levelname)s %(name)s: %(message)s"
        handler.setFormatter(logging.Formatter(form))
        logging.getLogger().addHandler(handler)
        self._logger.setLevel(logging.INFO)

    def say(self, text: str) -> None:
        """A line."""
        self._logger.info(text)

    def error(self, error: BaseException) -> None:
        """With its traceback."""
        self._logger.error("ended by an error", exc_info=error)

    def stacks(self) -> None:
        """Where every thread is now."""
        if self.file is not None:
            self.say("the stacks of all threads:")
            faulthandler.dump_traceback(self.file)

    def _take_output(self, file: TextIO) -> None:
        """What this process and the libraries in it print."""
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
