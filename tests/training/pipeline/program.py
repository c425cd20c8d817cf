"""Forks ranks that go through courses.

Each line on stdin asks for some teams at a time, ``{"timeout_s", "teams": [{"courses", "base",
"output", "stages", "replicas", "port", "fault", "stage"}]}``, and
is answered by what their ranks exited with, None for one that hung. The ranks are forks of this
process: torch is imported once.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from lorafusion.launch.environment import prepare_environment

prepare_environment()

import torch  # noqa: E402
from transformers import LlamaForCausalLM  # noqa: E402, F401

from lorafusion.training.grid import Grid  # noqa: E402
from tests.training.pipeline.courses import Course, Settings  # noqa: E402
from tests.training.pipeline.rank import Duty, go_through, load_part  # noqa: E402
from tests.training.stage_program import wait_for  # noqa: E402


def main() -> None:
    """Until stdin ends."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        for team in request["teams"]:
            for stage in range(team["stages"]):
                load_part(team["base"], team["stages"], stage)
        ranks = {
            fork(team, rank): (number, rank)
            for number, team in enumerate(request["teams"])
            for rank in range(team["stages"] * team["replicas"])
        }
        codes = wait_for(dict(zip(ranks, range(len(ranks)), strict=True)), request["timeout_s"])
        found: list[list[int | None]] = [[] for _ in request["teams"]]
        for (number, _), code in zip(ranks.values(), codes, strict=True):
            found[number].append(code)
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()


def fork(team: dict[str, Any], rank: int) -> int:
    """Start a rank; returns its process."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    try:
        log = os.open(f"{team['output']}/err-{rank}", os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        courses = [read_course(entry) for entry in json.loads(Path(team["courses"]).read_text())]
        fault = team["fault"] if rank == team["stage"] else ""
        paths = (team["base"], team["output"])
        grid = Grid(team["stages"], team["replicas"])
        go_through(courses, Duty(*paths, rank, grid, team["port"], fault))
        sys.stderr.write(f"{sum(os.times()[:2]):.2f} s of CPU time\n")
        sys.stderr.flush()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(99)


def read_course(entry: dict[str, Any]) -> Course:
    """As ``dataclasses.asdict`` wrote it; its places are those of its revisions."""
    return Course(**{**entry, "settings": Settings(**entry["settings"]), "places": ()})


if __name__ == "__main__":
    main()
    os._exit(0)  # taking all modules down takes seconds
