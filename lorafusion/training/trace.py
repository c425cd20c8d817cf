"""What a rank did when: kept in a file, in sums, and as what is being done now.

The file is ``rank-N.jsonl``, see :mod:`lorafusion.training.trace_file`. Its lines, in the order in
which things end, with times in seconds of this process's ``time.perf_counter()``:

- ``{"kind": "session", "session": 1, "began": ..., "stage": 0, "stages": 4,
  "replica": 0}``;
- ``{"kind": "offset", "offset_s": ...}``: to be added to the session's times to get rank 0's; the
  last one holds;
- ``{"kind": "forward", "place": 3, "name": "a#1", "start": ..., "end": ...}``, and the other kinds
  of spans;
- ``{"kind": "stepped", "place": 3, "job": "a", "step": 1, "samples": [...], "at": ...}``;
- ``{"kind": "memory", "at": ..., "total": ..., "runtime": ..., "base": ..., "adapters": ...,
  "gradients": ..., "optimizer": ...}``: bytes at the end of a forward, every half second or so, see
  :class:`~lorafusion.training.memory_kinds.MemoryKinds`;
- ``{"kind": "full"}``: what follows was left out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from lorafusion.training.memory import peak_rss_mb
from lorafusion.training.stage_times import StageTimes, Sums
from lorafusion.training.team import SpanKind
from lorafusion.training.trace_file import TraceFile, to_json

if TYPE_CHECKING:
    from lorafusion.models.stage import Stage
    from lorafusion.training.memory_kinds import MemoryKinds

_clock = time.perf_counter
# Seconds between two looks at the memory: a look takes 50 microseconds.
MEMORY_S = 0.5


@dataclass(frozen=True, slots=True)
class Doing:
    """What a rank is in.

    Attributes:
        kind: As of the span.
        place: The same.
        name: The same.
        since: When it began, ``time.perf_counter()``.
    """

    kind: SpanKind
    place: int
    name: str
    since: float


class Trace:
    """Keeps what one rank does. See :class:`lorafusion.training.team.Recorder`.

    Spans may lie inside one another; all are of one thread. A span takes about 3 microseconds.
    """

    def __init__(
        self,
        folder: Path | None,
        stage: int = 0,
        stages: int = 1,
        *,
        replica: int = 0,
        offset_s: float = 0.0,
    ) -> None:
        """Begin a session.

        Args:
            folder: Of the traces; None: sums alone are kept.
            stage: Of this rank.
            stages: Of the run.
            replica: Of this rank.
            offset_s: To add to this process's ``time.perf_counter()`` to get rank 0's.
        """
        self._at = stage, replica
        self._inside: list[_Span] = []
        self._sums = Sums()
        self._file = None
        self._memory: Callable[[], MemoryKinds] | None = None
        self._memory_due = math.inf
        if folder is not None:
            path = folder / f"rank-{replica * stages + stage}.jsonl"
            self._file = TraceFile(path, {"stage": stage, "stages": stages, "replica": replica})
        self.offset_s = offset_s

    @classmethod
    def silent(cls) -> Trace:
        """Keeps sums and what is being done; no file."""
        return cls(None)

    def span(self, kind: SpanKind, place: int, name: str) -> _Span:
        """Covers the time that ``kind`` takes at a place of the run."""
        return _Span(self, kind, place, name)

    def stepped(self, place: int, job: str, step: int, samples: Sequence[int]) -> None:
        """These samples' gradients are in the step that was just applied."""
        if self._file is not None:
            now = _clock()
            line = {"kind": "stepped", "place": place, "job": job, "step": step}
            more = {"samples": list(samples), "at": round(now, 6)}
            self._file.add(to_json({**line, **more}), now)

    def look_at(self, stage: Stage, memory: Callable[[], MemoryKinds]) -> None:
        """Keep what ``memory`` says at the end of the first forward, and of later ones."""
        self._memory, self._memory_due = memory, _clock()

    @property
    def offset_s(self) -> float:
        """To add to this process's times to get rank 0's."""
        return self._offset_s

    @offset_s.setter
    def offset_s(self, offset_s: float) -> None:
        self._offset_s = offset_s
        if self._file is not None:
            self._file.add(to_json({"kind": "offset", "offset_s": offset_s}), _clock())

    @property
    def current(self) -> Doing | None:
        """The innermost span that the rank is in; for any thread."""
        inside = self._inside[-1:]
        return inside[0].doing if inside else None

    @property
    def problem(self) -> str | None:
        """Why the file ended early; None while all is well."""
        return None if self._file is None else self._file.problem

    def summary(self) -> StageTimes:
        """The sums so far, of the spans that have ended."""
        return self._sums.summary(*self._at, self._offset_s, peak_rss_mb())

    def flush(self) -> None:
        """Write what is kept; from any thread."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Write what is kept, and close the file; what follows is in the sums alone."""
        if self._file is not None:
            self._file.close()

    def _enter(self, span: _Span) -> None:
        self._inside.append(span)
        self._sums.begin(span.kind, span.name, span.start)

    def _leave(self, span: _Span, now: float) -> None:
        inside = self._inside
        inside.pop()
        start, kind, name = span.start, span.kind, span.name
        seconds = now - start
        if inside:
            inside[-1].inner += seconds
        self._sums.end(kind, name, now, seconds - span.inner)
        if self._file is not None:
            self._file.add(
                f'{{"kind":"{kind}","place":{span.place},"name":{to_json(name)},'
                f'"start":{start:.6f},"end":{now:.6f}}}',
                now,
            )
            if kind == "forward" and now >= self._memory_due:
                self._keep_memory(self._file, now)

    def _keep_memory(self, file: TraceFile, now: float) -> None:
        assert self._memory is not None
        self._memory_due = now + MEMORY_S
        line = {"kind": "memory", "at": round(now, 6), **self._memory().to_dict()}
        file.add(to_json(line), now)


class _Span:
    """One span; ``inner`` are the seconds of those inside it."""

    __slots__ = ("_trace", "inner", "kind", "name", "place", "start")

    def __init__(self, trace: Trace, kind: SpanKind, place: int, name: str) -> None:
        self._trace = trace
        self.kind: SpanKind = kind
        self.place = place
        self.name = name
        self.start = self.inner = 0.0

    def __enter__(self) -> None:
        self.start = _clock()
        self._trace._enter(self)  # pyright: ignore[reportPrivateUsage]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._trace._leave(self, _clock())  # pyright: ignore[reportPrivateUsage]

    @property
    def doing(self) -> Doing:
        return Doing(self.kind, self.place, self.name, self.start)
