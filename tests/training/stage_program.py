"""Whole runs over several stages, one after the other, with faults where they are asked for.

Each line on stdin is a :class:`tests.training.stages.Case` as JSON, and is answered by a line with
what its ranks exited with. The ranks are forks of this process, so that torch and transformers are
imported once; each then does what ``python -m lorafusion.launch`` does.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any, Self

from lorafusion.launch.environment import prepare_environment

prepare_environment()

import torch  # noqa: E402

from lorafusion.cli import rank as rank_command  # noqa: E402
from lorafusion.errors import PlanError  # noqa: E402
from lorafusion.launch import lead, run_store  # noqa: E402
from lorafusion.launch.stopping import StopRequest  # noqa: E402
from lorafusion.training import windows  # noqa: E402
from lorafusion.training.events import Events, Relay  # noqa: E402
from tests.training.planted import Fault, plant  # noqa: E402
from tests.training.timetable import Timetable  # noqa: E402

# What ranks import as they go.
LATER = """
lorafusion.cli.closing lorafusion.cli.display lorafusion.launch.lead lorafusion.launch.team
lorafusion.launch.run_store lorafusion.training.follow lorafusion.training.run
transformers.models.llama.modeling_llama
""".split()


def main() -> None:
    """Until stdin ends."""
    torch.set_num_threads(1)
    for name in LATER:
        import_module(name)
    for line in sys.stdin:
        case = json.loads(line)
        ranks = {fork(case, rank): rank for rank in range(ranks_of(case))}
        codes = wait_for(ranks, case["timeout_s"])
        sys.stdout.write(json.dumps(codes) + "\n")
        sys.stdout.flush()


def ranks_of(case: dict[str, Any]) -> int:
    """How many there are."""
    return case["ranks"] or case["stages"] * case["replicas"]


def fork(case: dict[str, Any], rank: int) -> int:
    """Start a rank; returns its process."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            be_rank(case, rank)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(99)
    return child


def be_rank(case: dict[str, Any], rank: int) -> None:
    """In the child; it ends in here."""
    streams = [(0, os.devnull, os.O_RDONLY)]
    for number, name in ((1, "out"), (2, "err")):
        streams.append((number, f"{case['folder']}/{name}-{rank}", os.O_WRONLY | os.O_CREAT))
    for number, path, flags in streams:
        os.dup2(os.open(path, flags, 0o600), number)
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(ranks_of(case)),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(case["port"]),
    }
    prepare(case, rank)
    rank_command.command(
        Path(case["file"]),
        stages=case["stages"],
        replicas=case["replicas"],
        replica_mode=case["mode"],
        elastic=case["elastic"],
        output=Path(case["output"]),
        resume=case["resume"],
        as_json=True,
        trace=case["trace"],
        hang_timeout=60.0,
        start_timeout=60.0,
    )


def prepare(case: dict[str, Any], rank: int) -> None:
    """Let happen in this process what the case asks for."""
    plant([fault for fault in (Fault(*entry) for entry in case["faults"]) if fault.stage == rank])
    if case["window"]:
        windows.WINDOW = case["window"]
    if case["stop_after"] is not None:
        stop_run_after(case["stop_after"])
    if case["pause_after"]:
        pause_after(case["pause_after"])
    if case["plans"] is not None:
        fail_after_plans(case["plans"])
    if case["coming"]:
        let_come(case["coming"])


def stop_run_after(calls: int) -> None:
    """The run is asked to stop from the ``calls + 1``-th time on that somebody looks."""
    left = calls
    stop_class: Any = StopRequest

    def reason(_request: StopRequest) -> str | None:
        nonlocal left
        if threading.current_thread() is not threading.main_thread():
            return None  # the store's looks too, by the clock
        left -= 1
        return "the test" if left < 0 else None

    stop_class.reason = reason


def pause_after(steps: dict[str, int]) -> None:
    """Jobs are asked to pause after so many steps and evals."""
    left = dict(steps)
    stop_class: Any = StopRequest

    def job_reason(_request: StopRequest, name: str) -> str | None:
        if name not in left or threading.current_thread() is not threading.main_thread():
            return None
        left[name] -= 1
        return "the test" if left[name] < 0 else None

    stop_class.job_reason = job_reason


def fail_after_plans(plans: int) -> None:
    """No plan can be made any more after so many."""
    made = 0
    windows_class: Any = windows.Windows
    next_plan = windows.Windows.next_plan

    def failing(self: windows.Windows) -> Any:
        nonlocal made
        made += 1
        if made > plans:
            raise PlanError("planted: no plan")
        return next_plan(self)

    windows_class.next_plan = failing


def let_come(coming: dict[str, Any]) -> None:
    """Jobs join the run: see :class:`tests.training.timetable.Timetable`."""
    lead_run = lead.lead_run

    def with_arrivals(rank: Any, team: Any, events: Any) -> Any:
        table = Timetable(rank.output, coming)
        for name in ("step", "ended"):
            setattr(events, name, _both(getattr(events, name), getattr(table, name)))
        return lead_run(rank, team, events, table)

    module: Any = lead
    module.lead_run = with_arrivals
    stores: Any = run_store
    stores.RunStore = _NoStore  # these jobs are in none


class _NoStore(Relay):
    def __init__(self, _run: Any, _stop: Any, inner: Events) -> None:
        super().__init__(inner)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        """Nothing to close."""


def _both(first: Any, second: Any) -> Any:
    def call(*arguments: Any, **options: Any) -> None:
        first(*arguments, **options)
        second(*arguments, **options)

    return call


def wait_for(ranks: dict[int, int], timeout_s: float) -> list[int | None]:
    """What the ranks exited with, minus the signal that killed one; None: it hung."""
    codes: dict[int, int | None] = {}
    deadline = time.monotonic() + timeout_s
    while len(codes) < len(ranks) and time.monotonic() < deadline:
        for process, rank in ranks.items():
            if rank not in codes and (ended := os.waitpid(process, os.WNOHANG))[0]:
                codes[rank] = os.waitstatus_to_exitcode(ended[1])
        time.sleep(0.01)
    for process, rank in ranks.items():
        if rank not in codes:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            codes[rank] = None
    return [codes[rank] for rank in sorted(codes)]


if __name__ == "__main__":
    main()
    os._exit(0)  # taking all modules down takes seconds
