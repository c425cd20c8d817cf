"""Finds a pipeline that hangs: no rank has begun or ended anything for too long.

One rank that waits long is no hang as long as another computes. Each rank tells rank 0 what it
does; rank 0 tells the others that it is alive.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorafusion.errors import LostRankError
from lorafusion.launch.channel import Envelope
from lorafusion.launch.post import StarPost
from lorafusion.training.stage_times import StageTimes
from lorafusion.training.team import Recorder, SpanKind

if TYPE_CHECKING:
    from lorafusion.models.stage import Stage
    from lorafusion.training.memory_kinds import MemoryKinds

HANG_TIMEOUT_S = 300.0
# Beats a timeout, and at most so many seconds apart.
_BEATS, _SLOWEST_BEAT_S = 10, 5.0
_DOING = {
    "forward": "in the forward of",
    "backward": "in the backward of",
    "step": "in the optimizer step of",
    "send": "sending",
    "wait": "waiting for",
}


class WatchedRecorder:
    """A recorder that also remembers what was begun last. See :mod:`lorafusion.training.team`."""

    def __init__(self, inner: Recorder) -> None:
        """``inner`` is told everything."""
        self._inner = inner
        self._inside: list[str] = []
        self._begun = 0

    @contextmanager
    def span(self, kind: SpanKind, place: int, name: str) -> Generator[None]:
        """Covers the time that ``kind`` takes at a place of the run."""
        self._inside.append(f"{_DOING[kind]} {name or 'nothing'} (place {place})")
        self._begun += 1
        try:
            with self._inner.span(kind, place, name):
                yield
        finally:
            self._inside.pop()
            self._begun += 1

    def stepped(self, place: int, job: str, step: int, samples: Sequence[int]) -> None:
        """Passed on."""
        self._inner.stepped(place, job, step, samples)

    def look_at(self, stage: Stage, memory: Callable[[], MemoryKinds]) -> None:
        """Passed on."""
        self._inner.look_at(stage, memory)

    def summary(self) -> StageTimes:
        """As ``inner`` has it."""
        return self._inner.summary()

    def close(self) -> None:
        """Passed on."""
        self._inner.close()

    @property
    def problem(self) -> str | None:
        """As ``inner`` has it."""
        return self._inner.problem

    def state(self) -> tuple[int, str | None]:
        """A number that changes with whatever begins or ends, and what is being done now."""
        inside = self._inside[-1:]
        return self._begun, inside[0] if inside else None


@dataclass
class _Seen:
    """Of one rank, in seconds of this process's clock."""

    count: int
    doing: str | None
    moved: float
    heard: float


class Watchdog:
    """Looks after all ranks on rank 0, and after rank 0 on the others."""

    def __init__(
        self,
        post: StarPost,
        recorder: WatchedRecorder,
        *,
        timeout_s: float,
        on_hang: Callable[[], None],
    ) -> None:
        """Begin.

        Args:
            post: To the other ranks; what hangs becomes its problem.
            recorder: What this rank is doing.
            timeout_s: Without any progress.
            on_hang: Called on every rank when the run hangs, for instance to write stacks.
        """
        self._post = post
        self._recorder = recorder
        self._timeout_s = timeout_s
        self._on_hang = on_hang
        now = time.monotonic()
        watched = range(post.ranks) if post.rank == 0 else range(1)
        self._seen = {rank: _Seen(0, None, now, now) for rank in watched}
        self._ended = threading.Event()
        post.on("beat", self._heard)
        post.on("stacks", self._hung)
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Watch no more."""
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        pause = min(_SLOWEST_BEAT_S, self._timeout_s / _BEATS)
        woken = time.monotonic()
        while not self._ended.wait(pause) and self._post.problem is None:
            count, doing = self._recorder.state()
            beat = {"kind": "beat", "count": count, "doing": doing}
            if self._post.rank == 0:
                self._heard(0, beat)
            self._post.broadcast(beat)
            now = time.monotonic()
            if now - woken > 2 * pause + 1:  # this process was stopped: what it saw is old
                for seen in self._seen.values():
                    seen.heard = seen.moved = now
            woken = now
            found = self._hanging(now)
            if found is not None:
                self._post.broadcast({"kind": "stacks"})
                self._on_hang()
                self._post.fail(LostRankError(found))

    def _hung(self, _rank: int, _envelope: Envelope) -> None:
        self._on_hang()

    def _heard(self, rank: int, beat: Envelope) -> None:
        seen, now = self._seen[rank], time.monotonic()
        seen.heard = now
        if (beat["count"], beat["doing"]) != (seen.count, seen.doing):
            seen.count, seen.doing, seen.moved = beat["count"], beat["doing"], now

    def _hanging(self, now: float) -> str | None:
        """What to say of it; None as long as all is well."""
        limit = self._timeout_s
        silent = {rank for rank, seen in self._seen.items() if now - seen.heard > limit}
        still = all(now - seen.moved > limit for seen in self._seen.values())
        # Without a silent rank, rank 0 that is in nothing has nothing to do, or loads, or saves.
        if not silent and not (still and self._post.rank == 0 and self._seen[0].doing):
            return None
        if silent:
            names = ", ".join(self._post.grid.name(rank) for rank in sorted(silent))
            first = f"{names} has not answered for {limit:g} s (--hang-timeout)."
        else:
            first = f"No rank has done anything for {limit:g} s (--hang-timeout)."
        if self._post.rank != 0:
            return first
        lines = [
            f"  {self._post.grid.name(rank)}: {_last_seen(seen, now, rank in silent)}"
            for rank, seen in self._seen.items()
        ]
        return "\n".join([first, *lines, "Stacks are in each rank's log, in logs/ of the run."])


def _last_seen(seen: _Seen, now: float, silent: bool) -> str:
    when = f"since {now - seen.moved:.0f} s" if seen.doing else ""
    doing = f"{seen.doing or 'in no place'} {when}".strip()
    return f"{'does not answer; last ' if silent else ''}{doing}"
