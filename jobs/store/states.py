"""The states of a job, and which may follow which."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

__all__ = ["ENDED", "FOLLOWS", "State", "Wanted"]


class State(StrEnum):
    """Where a job stands."""

    PENDING = "pending"
    """Submitted, and no worker has it."""
    PLANNED = "planned"
    """A worker has it, and it joins the run at the next edge of a window."""
    RUNNING = "running"
    """It trains."""
    PAUSED = "paused"
    """Saved and taken out, until it is resumed."""
    RECOVERING = "recovering"
    """Its worker is gone; it goes on from its newest checkpoint as soon as another takes it."""
    SUCCEEDED = "succeeded"
    """All steps are done and the adapter is exported."""
    FAILED = "failed"
    """It cannot be trained; the reason says why."""
    CANCELLED = "cancelled"
    """Given up because somebody asked for it."""


class Wanted(StrEnum):
    """What its user wants of a job."""

    RUN = "run"
    PAUSE = "pause"
    CANCEL = "cancel"


ENDED = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})
"""Nothing follows these."""

FOLLOWS: Mapping[State, frozenset[State]] = {
    State.PENDING: frozenset({State.PLANNED, State.PAUSED, State.CANCELLED, State.FAILED}),
    State.PLANNED: frozenset(
        {State.RUNNING, State.PENDING, State.PAUSED, State.RECOVERING, *ENDED}
    ),
    State.RUNNING: frozenset({State.PAUSED, State.RECOVERING, *ENDED}),
    State.PAUSED: frozenset({State.PENDING, State.CANCELLED}),
    State.RECOVERING: frozenset({State.PLANNED, State.PAUSED, State.CANCELLED, State.FAILED}),
    **dict.fromkeys(ENDED, frozenset[State]()),
}
"""State -> those that may come next."""
