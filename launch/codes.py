"""What a rank exits with."""

from __future__ import annotations

from signal import Signals

from lorafusion.errors import LaunchError, LorafusionError, LostRankError

FAULT = 1
BAD_INPUT = 2
INTERRUPTED = 130
SIGNALLED = 128  # plus the signal's number, as shells count


class EndedByRankZero(LaunchError):
    """Rank 0 has told this rank to end, and has told the user why."""

    def __init__(self, why: str, code: int) -> None:
        super().__init__(why)
        self.code = code


class StoppedEarly(BaseException):  # as KeyboardInterrupt is
    """A signal came before the run could be stopped with its state saved, or a second one."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {Signals(number).name}")
        self.code = SIGNALLED + number


def exit_code(error: BaseException) -> int:
    """What a rank that ends with ``error`` exits with."""
    if isinstance(error, EndedByRankZero | StoppedEarly):
        return error.code
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, LorafusionError) and not isinstance(error, LostRankError):
        return BAD_INPUT
    return FAULT
