"""``python -m lorafusion.bench.pipeline_ranks STUDY.json RESULT.json``: all ranks of one study.

The ranks are forks of this process: importing torch and transformers takes seconds, and is done
once. The data and the plans are made before, so that every rank has the same.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafusion.launch.environment import prepare_environment

if TYPE_CHECKING:
    from lorafusion.bench.pipeline_sleep import SleepCase
    from lorafusion.bench.pipeline_ways import JobsCase
    from lorafusion.launch.world import World

FAILED = 1


def main(study: Path, result: Path) -> int:
    """Run a study; rank 0 writes what it found. Returns what to exit with."""
    prepare_environment()
    # Not before the environment is prepared, and in this process rather than in its forks.
    import torch

    from lorafusion.bench.pipeline_jobs import JobsStudy
    from lorafusion.bench.pipeline_sleep import SleepStudy
    from lorafusion.bench.pipeline_ways import JobsCase

    torch.set_num_threads(1)  # a fork must not need threads that its parent has started
    settings: dict[str, Any] = json.loads(study.read_text(encoding="utf-8"))
    kind = settings.pop("kind")
    if kind == "sleep":
        case = SleepStudy(**settings).case()
    else:
        case = JobsCase.make(JobsStudy(**settings), result.parent / "base")
    port = _free_port()
    stages = case.study.stages
    ranks = {_fork(case, _world(rank, stages, port), result): rank for rank in range(stages)}
    return _wait(ranks)


def _fork(case: SleepCase | JobsCase, world: World, result: Path) -> int:
    from lorafusion.bench.pipeline_turn import TurnRecorder
    from lorafusion.launch.team import TeamOptions, join_team

    child = os.fork()
    if child:
        return child
    code = FAILED
    try:
        recorder = TurnRecorder()
        with join_team(TeamOptions(world, recorder=lambda _: recorder)) as team:
            found = case.run(team, recorder)
        if found is not None:
            result.write_text(json.dumps(found), encoding="utf-8")
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _wait(ranks: dict[int, int]) -> int:
    """Until all have ended; the first that fails ends the others."""
    worst = 0
    left = set(ranks)
    while left:
        process, status = os.wait()
        left.discard(process)
        if status and not worst:
            worst = FAILED
            for other in left:
                os.kill(other, signal.SIGTERM)
    return worst


def _world(rank: int, ranks: int, port: int) -> World:
    from lorafusion.launch.world import World

    return World(
        rank=rank,
        ranks=ranks,
        local_rank=rank,
        local_ranks=ranks,
        address=f"localhost:{port}",
        host=socket.gethostname(),
    )


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
