"""How many tokens fit on a stage at once, learned where memory ran out."""

from __future__ import annotations


class Room:
    """What ran through forward and backward, and with what memory ran out."""

    def __init__(self) -> None:
        self._full: int | None = None
        self._ran = 0

    @property
    def limit(self) -> int | None:
        """The most tokens that are worth a try; None as long as memory has not run out.

        That is what is known to fit, or half of what is known not to. So each time that memory runs
        out brings the limit down by half at most, and the tries stay few.
        """
        return None if self._full is None else max(self._ran, self._full // 2, 1)

    def ran(self, tokens: int) -> None:
        """So many tokens fit, forward and backward."""
        if self._full is None or tokens < self._full:
            self._ran = max(self._ran, tokens)

    def ran_out(self, tokens: int) -> None:
        """So many did not."""
        if tokens <= self._ran:
            self._ran = 0  # there was more memory then
        self._full = tokens if self._full is None else min(self._full, tokens)
