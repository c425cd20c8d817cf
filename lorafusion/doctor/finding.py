"""A check, what it found, and running all of them so that none can harm another."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from lorafusion.doctor.surroundings import Surroundings

Status = Literal["ok", "warning", "missing"]


@dataclass(frozen=True)
class Finding:
    """What one check saw.

    Attributes:
        status: ``missing``: it is not there, or cannot be used.
        found: What is there, in one line.
        means: What that is for LoRAFusion, in one line.
        fix: The command or setting that mends it.
    """

    status: Status
    found: str
    means: str
    fix: str | None = None


@dataclass(frozen=True)
class Check:
    """One thing to look at.

    Attributes:
        section: The heading that it stands under.
        name: Unique; a key of the JSON, so it stays.
        look: Looks, and changes nothing that lasts.
        needed: Whether training cannot run where it is missing.
        seconds: When to give up on it.
    """

    section: str
    name: str
    look: Callable[[Surroundings], Finding]
    needed: bool = False
    seconds: float = 90.0


@dataclass(frozen=True)
class Result:
    """A check with its finding."""

    check: Check
    finding: Finding

    @property
    def stops_training(self) -> bool:
        """Whether training cannot run here because of it."""
        return self.check.needed and self.finding.status == "missing"


def run_checks(
    checks: Sequence[Check],
    around: Surroundings,
    on_done: Callable[[Check], None] = lambda _: None,
) -> list[Result]:
    """All findings, in the order of ``checks``. They run at once, each in a thread of its own.

    Args:
        checks: What to look at.
        around: The machine.
        on_done: Told when a check is through; called from several threads.
    """
    running = [_Running(check, around, on_done) for check in checks]
    return [Result(each.check, each.wait()) for each in running]


class _Running:
    # A daemon thread, not a pool: a check that hangs must not keep the process from ending.
    def __init__(
        self, check: Check, around: Surroundings, on_done: Callable[[Check], None]
    ) -> None:
        self.check = check
        self._around = around
        self._on_done = on_done
        self._finding = _not_seen(check, f"no answer within {check.seconds:g} s")
        self._thread = threading.Thread(target=self._run, name=check.name, daemon=True)
        self._thread.start()

    def wait(self) -> Finding:
        self._thread.join(self.check.seconds)
        return self._finding

    def _run(self) -> None:
        try:
            self._finding = self.check.look(self._around)
        except BaseException as error:  # a library that calls sys.exit, too
            self._finding = _not_seen(self.check, f"{type(error).__name__}: {error}")
        self._on_done(self.check)


def _not_seen(check: Check, why: str) -> Finding:
    return Finding(
        "missing" if check.needed else "warning",
        " ".join(f"could not be looked at ({why})".split()),
        "nothing is known of it" + (", so training may fail" if check.needed else ""),
    )
