"""A rank as ``lorafusion.launch.worker`` runs it, with a small piece of work instead of training.

``rank_program.py FILE MODE RANK [--stages S] [--output O] [--hang S] [--start S]``: in a mode that
is a fault, ``RANK`` has it.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
import time
from pathlib import Path

from lorafusion.errors import DataError
from lorafusion.launch.stopping import stop_on_signals
from lorafusion.launch.worker import Rank, RankOptions, run_rank
from lorafusion.training.grid import Grid
from lorafusion.training.team import Team


def say(text: str) -> None:
    """A line."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def fault(mode: str) -> None:
    """Do to this process what ``mode`` says."""
    if mode == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "exit":
        sys.exit(0)
    if mode == "segfault":
        ctypes.string_at(0)
    if mode == "raise":
        raise ZeroDivisionError("no such luck")
    if mode == "user":
        raise DataError("rows.jsonl has no rows.")
    if mode == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if mode == "stuck":  # holds no lock, but hears nothing: in C
        while True:
            time.sleep(1000)


def places(rank: Rank, team: Team, arguments: argparse.Namespace) -> None:
    """Messages down and up again, place after place, until rank 0 is asked to stop."""
    place = 0
    while True:
        asked = rank.stop.reason() is not None and arguments.mode != "deaf"
        stop = team.first and (asked or place == arguments.places)
        with team.recorder.span("wait", place, "the rank before"):
            entering = team.up.receive(1).wait() if team.up else None
        ending = bool(entering.item()) if entering is not None else stop
        if place == 5 and team.stage == arguments.rank and not rank.world.restarts:
            fault(arguments.mode)
        for _ in range(arguments.spans):
            with team.recorder.span("forward", place, "a#1"):
                time.sleep(arguments.pause)
        if team.down:
            team.down.send(number(ending))
            with team.recorder.span("wait", place, "the rank behind"):
                team.down.receive(1).wait()
        if team.up:
            team.up.send(number(ending))
        if ending:
            return
        place += 1


def number(value: int):
    """As a message."""
    import torch

    return torch.tensor([value], dtype=torch.uint8)


def main() -> None:
    """Parse, run, exit."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("mode")
    parser.add_argument("rank", type=int)
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--hang", type=float, default=300)
    parser.add_argument("--start", type=float, default=20)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--places", type=int, default=10)
    parser.add_argument("--pause", type=float, default=0.01)
    parser.add_argument("--spans", type=int, default=1)
    arguments = parser.parse_args()

    def lead(rank: Rank, team: Team) -> int:
        say(f"leads {team.stages}, results there: {rank.existing}")
        with stop_on_signals(rank.stop):
            places(rank, team, arguments)
        say("stopped cleanly" if rank.stop.signal else "finished")
        return 128 + rank.stop.signal if rank.stop.signal else 0

    def follow(rank: Rank, team: Team) -> None:
        say("this goes to the log")
        places(rank, team, arguments)

    options = RankOptions(
        arguments.file,
        Grid(arguments.stages, arguments.replicas),
        arguments.output,
        hang_timeout_s=arguments.hang,
        start_timeout_s=arguments.start,
    )
    code = run_rank(options, lead, follow, show=show)
    sys.stdout.flush()
    os._exit(code)


def show(error: BaseException) -> None:
    """As the command line shows it."""
    sys.stderr.write(f"error: {error}\n")


if __name__ == "__main__":
    main()
