"""Files of JSON lines that a run adds to, session behind session.

A session begins with a header. Lines are written in blocks: what a killed run leaves can be read up
to a last line that may be cut off, and that the next session takes away.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lorafusion.planner.plan import Limits, Place

FOLDER = "trace"
"""Of a run's output folder."""

# A block is written after so many lines, or with the first line after so many seconds.
BLOCK_LINES, BLOCK_S = 512, 1.0
# Of a session: 700,000 spans.
MOST_BYTES = 64_000_000
_HEADER = b'{"kind":"session",'

to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
"""One line of JSON."""


class TraceFile:
    """One session of such a file. A disk that is full ends the file, not the run.

    Attributes:
        session: From 1; one more than the last one in the file.
        problem: Why nothing more is written; None while all is well.
    """

    def __init__(
        self, path: Path, header: Mapping[str, Any], *, most_bytes: int = MOST_BYTES
    ) -> None:
        """Add the header of a new session.

        Args:
            path: The file; its folder is made where there is none.
            header: What to say of the session beside its number and the hour it began.
            most_bytes: Of this session; what comes after is left out, and a line says so.
        """
        self.session = 1
        self.problem: str | None = None
        self._path = path
        self._left = most_bytes
        self._lines: list[str] = []
        self._due = time.perf_counter() + BLOCK_S
        self._writing = threading.Lock()
        self._file = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)
            self.session += _last_session(path)
        except (OSError, ValueError, KeyError) as error:
            self._end(_cannot(path, error))
        first = {"kind": "session", "session": self.session, "began": round(time.time(), 3)}
        self._lines.append(to_json({**first, **header}))
        self.flush()

    def add(self, line: str, now: float) -> None:
        """Add a line of JSON; ``now`` is ``time.perf_counter()``."""
        lines = self._lines
        lines.append(line)
        if len(lines) >= BLOCK_LINES or now >= self._due:
            self._due = now + BLOCK_S
            self.flush()

    def flush(self) -> None:
        """Write what was added; from any thread."""
        with self._writing:
            count = len(self._lines)
            # Another thread may add lines behind these.
            block = "".join(f"{line}\n" for line in self._lines[:count]).encode(errors="replace")
            del self._lines[:count]
            if self._file is None or not block:
                return
            if len(block) > self._left:
                self._write(b'{"kind":"full"}\n')
                self._end(f"{self._path} is full; the rest of this session is not in it.")
                return
            self._left -= len(block)
            self._write(block)

    def close(self) -> None:
        """Write what is left, and close the file."""
        self.flush()
        with self._writing:
            self._end(None)

    def _write(self, block: bytes) -> None:
        file = self._file
        assert file is not None
        size = file.seek(0, os.SEEK_END)
        try:
            if file.write(block) != len(block):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            with contextlib.suppress(OSError):
                file.truncate(size)
            self._end(_cannot(self._path, error))

    def _end(self, problem: str | None) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None
        self.problem = self.problem or problem


class PlaceTrace:
    """``places.jsonl``: each place as it was run. For rank 0."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        """``folder`` is that of the traces; the plans were made for ``limits``."""
        self._file = TraceFile(folder / "places.jsonl", {"limits": asdict(limits)})

    def ran(self, number: int, place: Place) -> None:
        """A place is run now; the last word on a number counts."""
        self._file.add(to_json({"number": number, **asdict(place)}), time.perf_counter())

    def close(self) -> None:
        """Write what is left."""
        self._file.close()

    @property
    def problem(self) -> str | None:
        """Why nothing more is written; None while all is well."""
        return self._file.problem


def _cannot(path: Path, error: Exception) -> str:
    return f"{path} cannot be written: {error}. The run goes on without it."


def _last_session(path: Path) -> int:
    """The number of the last session, 0 in a new file; takes away a line that was cut off."""
    session = whole = 0
    with path.open("rb+") as file:
        for line in file:
            if not line.endswith(b"\n"):
                file.truncate(whole)
                break
            whole += len(line)
            if line.startswith(_HEADER):
                session = int(json.loads(line)["session"])
    return session
