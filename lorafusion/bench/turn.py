"""One turn: one way trains the jobs once, in a process of its own that tells what it does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import lorafusion
from lorafusion.bench.noise import Noise, NoiseMeter
from lorafusion.bench.settings import DETERMINISTIC, LIMIT, TOGETHER
from lorafusion.errors import TurnError

BASELINE = Path(__file__).with_name("baseline.py")
GRACE_S = 5.0
# Lines of a failed turn's log that are shown.
_SHOWN = 12


@dataclass(frozen=True)
class Step:
    """An optimizer step: its mean training loss, and seconds of training until its end.

    The limit has no loss: NaN.
    ``seconds`` counts from the job's start where one job follows another, else from the run's.
    """

    job: str
    step: int
    loss: float
    tokens: int
    seconds: float


@dataclass
class Turn:
    """What one way did in one round at one dropout.

    Attributes:
        way: One of ``WAYS``.
        round: From 1.
        dropout: Of all adapters.
        steps: In the order in which they ended.
        peak_rss_mb: Most memory of the process, in MB of 10^6 bytes.
        noise: What else went on.
    """

    way: str
    round: int
    dropout: float
    steps: list[Step] = field(default_factory=list[Step])
    peak_rss_mb: float | None = None
    noise: Noise | None = None

    @property
    def tokens(self) -> int:
        """Real tokens trained on."""
        return sum(step.tokens for step in self.steps)

    @property
    def seconds(self) -> float:
        """Seconds of training: the whole run's, or the sum of the jobs' where they take turns."""
        ends: dict[str, float] = {}
        for step in self.steps:
            ends[step.job] = step.seconds
        return max(ends.values(), default=0.0) if self.way in TOGETHER else sum(ends.values())

    @property
    def tokens_per_s(self) -> float:
        """Real tokens a second."""
        return self.tokens / self.seconds if self.seconds else 0.0


def run_turn(turn: Turn, inputs: Path, log: Path, *, on_step: Callable[[Turn], None]) -> None:
    """Train in a child process and fill ``turn``; ``on_step`` is called after each step.

    Raises:
        TurnError: The child failed, or did not say how it went.
    """
    meter = NoiseMeter()
    log.parent.mkdir(parents=True, exist_ok=True)
    done = False
    with log.open("w", encoding="utf-8") as errors, _child(turn.way, inputs, errors) as child:
        assert child.stdout is not None
        for line in child.stdout:
            event = _event(line)
            if event.get("event") == "step":
                turn.steps.append(_step(event))
                on_step(turn)
            elif event.get("event") == "done":
                turn.peak_rss_mb = event["peak_rss_mb"]
                done = True
        code = child.wait()
    if code or not done:
        raise TurnError(_failure(turn, code, log))
    turn.noise = meter.read()


def command_line(way: str, inputs: Path) -> list[str]:
    """What starts a way on the inputs of one dropout."""
    if way in TOGETHER:
        module = f"lorafusion.bench.{'limit' if way == LIMIT else 'ours'}"
        more = ["--deterministic"] if way == DETERMINISTIC else []
        return [sys.executable, "-m", module, str(inputs), *more]
    # -P: the folder of the script holds modules of ours.
    return [sys.executable, "-P", str(BASELINE), str(inputs), way.removeprefix("peft-")]


@contextmanager
def _child(way: str, inputs: Path, errors: Any) -> Generator[subprocess.Popen[str]]:
    """A process in a session of its own: a Ctrl-C is ours to handle. It never outlives us."""
    environment = dict(os.environ, TOKENIZERS_PARALLELISM="false", HF_HUB_DISABLE_PROGRESS_BARS="1")
    if way in TOGETHER:
        ours = str(Path(lorafusion.__file__).parents[1])
        environment["PYTHONPATH"] = os.pathsep.join(
            part for part in (ours, os.environ.get("PYTHONPATH")) if part
        )
    child = subprocess.Popen(
        command_line(way, inputs),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        yield child
    finally:
        if child.poll() is None:
            _end(child)
        if child.stdout is not None:
            child.stdout.close()


def _end(child: subprocess.Popen[str]) -> None:
    """End the child and whatever it started, politely first."""
    _signal_group(child, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        child.wait(timeout=GRACE_S)
    _signal_group(child, signal.SIGKILL)
    child.wait()


def _signal_group(child: subprocess.Popen[str], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # all have ended
        os.killpg(child.pid, number)


def _event(line: str) -> dict[str, Any]:
    """A line of a child's stdout; what libraries print there is passed over."""
    try:
        value: object = json.loads(line)
    except ValueError:
        return {}
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _step(event: dict[str, Any]) -> Step:
    return Step(event["job"], event["step"], event["loss"], event["tokens"], event["s"])


def _failure(turn: Turn, code: int, log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
    hint = " Was there enough memory?" if code == -signal.SIGKILL else ""
    return "\n".join(
        [f"{turn.way}, round {turn.round}, dropout {turn.dropout:g}: {how}.{hint} From {log}:"]
        + [f"  {line[:300]}" for line in lines[-_SHOWN:]]
    )
