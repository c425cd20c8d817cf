"""What a stage did with its time, as sums that are kept while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorafusion.training.team import SpanKind

BUSY: tuple[SpanKind, ...] = ("forward", "backward", "step")
SEND: SpanKind = "send"
# What the waits of a stage are for, by the beginnings of their names; any other is for the plan.
_WAITS = {"forward": "before", "backward": "after"}


@dataclass(frozen=True, slots=True)
class StageTimes:
    """One stage's time in one process of a run, in seconds; plain data.

    A span inside another counts once, as the inner one. Waits for the plan before the first other
    span, and behind the last one, belong to starting and ending and are not in here.

    Attributes:
        stage: From 0.
        layers: First, and one behind the last; None where nobody said.
        forward_s: In forwards.
        backward_s: In backwards.
        step_s: In optimizer steps.
        send_s: In sends.
        wait_before_s: In waits for the stage before.
        wait_after_s: In waits for the stage behind.
        wait_plan_s: In waits for rank 0's plan.
        longest_wait_s: The longest wait.
        longest_wait: What it was for, such as ``forward of stage 0``.
        begin_s: Start of the first span, on rank 0's clock.
        wall_s: From there to the end of the last one.
        busy_s: Forwards, backwards, steps.
        bubble: Share of ``wall_s`` that is not busy.
        full_s: From the start of the first backward to the end of the last forward.
        full_busy_s: Of ``full_s``, the busy time.
        bubble_without_ramp: Share of ``full_s`` that is not busy; 0 where there is none. As in
            :mod:`lorafusion.planner.simulate`.
        peak_rss_mb: Most memory of the process, in MB of 10^6 bytes.
        replica: Whose stage it is, from 0.
    """

    stage: int
    layers: tuple[int, int] | None
    forward_s: float
    backward_s: float
    step_s: float
    send_s: float
    wait_before_s: float
    wait_after_s: float
    wait_plan_s: float
    longest_wait_s: float
    longest_wait: str
    begin_s: float
    wall_s: float
    busy_s: float
    bubble: float
    full_s: float
    full_busy_s: float
    bubble_without_ramp: float
    peak_rss_mb: float
    replica: int = 0

    @property
    def other_s(self) -> float:
        """Neither busy nor waiting: sends, and what is in no span, such as rank 0's planning."""
        waits = self.wait_before_s + self.wait_after_s + self.wait_plan_s
        return max(0.0, self.wall_s - self.busy_s - waits)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StageTimes:
        """What :meth:`to_dict` and JSON made of it."""
        layers = values["layers"]
        plain: dict[str, Any] = {**values, "layers": None if layers is None else tuple(layers)}
        return cls(**plain)


class Sums:
    """Adds spans up as they begin and end."""

    def __init__(self) -> None:
        self._seconds: dict[SpanKind, float] = dict.fromkeys((*BUSY, SEND), 0.0)
        self._waits = {"before": 0.0, "after": 0.0, "plan": 0.0}
        self._longest = (0.0, "")
        self._busy = 0.0
        # Waits for the plan that count once something else follows.
        self._pending: list[tuple[float, str]] = []
        self._begin: float | None = None
        self._end = 0.0
        self._first_backward: float | None = None
        self._busy_before = self._busy_until = 0.0
        self._last_forward = 0.0

    def begin(self, kind: SpanKind, name: str, now: float) -> None:
        """A span begins."""
        if kind == "wait" and _waited_for(name) == "plan":
            return
        if self._begin is None:
            self._begin = now
        self._settle()
        if kind == "backward" and self._first_backward is None:
            self._first_backward = now
            self._busy_before = self._busy

    def end(self, kind: SpanKind, name: str, now: float, own: float) -> None:
        """It ends; ``own`` seconds of it were in no span inside it."""
        if kind == "wait":
            self._end_wait(name, now, own)
            return
        self._settle()
        self._end = now
        self._seconds[kind] += own
        if kind != "send":
            self._busy += own
        if kind == "forward":
            self._last_forward = now
            self._busy_until = self._busy

    def summary(self, stage: int, replica: int, offset_s: float, peak_rss_mb: float) -> StageTimes:
        """What there is so far."""
        begin = self._begin or 0.0
        wall = max(0.0, self._end - begin)
        full = full_busy = 0.0
        if self._first_backward is not None and self._last_forward > self._first_backward:
            full = self._last_forward - self._first_backward
            full_busy = self._busy_until - self._busy_before
        return StageTimes(
            stage=stage,
            layers=None,
            forward_s=self._seconds["forward"],
            backward_s=self._seconds["backward"],
            step_s=self._seconds["step"],
            send_s=self._seconds["send"],
            wait_before_s=self._waits["before"],
            wait_after_s=self._waits["after"],
            wait_plan_s=self._waits["plan"],
            longest_wait_s=self._longest[0],
            longest_wait=self._longest[1],
            begin_s=begin + offset_s,
            wall_s=wall,
            busy_s=self._busy,
            bubble=_idle(self._busy, wall),
            full_s=full,
            full_busy_s=full_busy,
            bubble_without_ramp=_idle(full_busy, full),
            peak_rss_mb=peak_rss_mb,
            replica=replica,
        )

    def _end_wait(self, name: str, now: float, own: float) -> None:
        what = _waited_for(name)
        if what == "plan":
            if self._begin is not None:
                self._pending.append((own, name))
            return
        self._settle()
        self._end = now
        self._waits[what] += own
        self._longest = max(self._longest, (own, name))

    def _settle(self) -> None:
        while self._pending:
            wait = self._pending.pop()
            self._waits["plan"] += wait[0]
            self._longest = max(self._longest, wait)


def _waited_for(name: str) -> str:
    return _WAITS.get(name.partition(" ")[0], "plan")


def _idle(busy: float, whole: float) -> float:
    return max(0.0, 1 - busy / whole) if whole > 0 else 0.0
