"""``python -m lorafusion.bench.pipeline_ranks STUDY RESULT.json``: all ranks of one study.

STUDY is its settings as JSON. The data and the plans are made before the ranks are forked, so that
every rank has the same.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from lorafusion.launch.environment import prepare_environment
from lorafusion.launch.forks import run_forks
from lorafusion.launch.world import World


def main(study: str, result: Path) -> int:
    """Run a study; rank 0 writes what it found. Returns what to exit with."""
    prepare_environment()
    # Not before the environment is prepared, and in this process rather than in its forks.
    from lorafusion.bench.pipeline_jobs import JobsStudy
    from lorafusion.bench.pipeline_sleep import SleepStudy
    from lorafusion.bench.pipeline_turn import TurnRecorder
    from lorafusion.bench.pipeline_ways import JobsCase
    from lorafusion.launch.team import TeamOptions, join_team

    settings: dict[str, Any] = json.loads(study)
    kind = settings.pop("kind")
    with tempfile.TemporaryDirectory(prefix="lorafusion-pipeline-") as folder:
        if kind == "sleep":
            case = SleepStudy(**settings).case()
        else:
            case = JobsCase.make(JobsStudy(**settings), Path(folder, "base"))

        def act(world: World) -> dict[str, Any] | None:
            recorder = TurnRecorder()
            with join_team(TeamOptions(world, recorder=lambda _: recorder)) as team:
                return case.run(team, recorder)

        return run_forks(case.study.stages, act, result)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
