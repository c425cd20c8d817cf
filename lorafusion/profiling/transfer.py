"""How long a message takes to the next stage on this machine, over the links that a run uses.

``python -m lorafusion.profiling.transfer RESULT.json`` is both ends: the ranks are forks of it.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from lorafusion.errors import ProfileError
from lorafusion.profiling.fit import fit_line

if TYPE_CHECKING:
    from lorafusion.training.team import Team

__all__ = ["measure_transfer"]

SIZES = (1_000, 30_000, 300_000, 3_000_000)
"""Bytes of the messages: from control numbers alone to 2,000 rows of 384 columns in float32."""

TURNS = 30
TIMEOUT_S = 120
_SAID = 2000


def measure_transfer() -> tuple[float, float]:
    """Seconds of any message, and of each of its bytes, between two processes of this machine.

    Half of there and back, medians of thirty.

    Raises:
        ProfileError: The processes ended badly; says what they said.
    """
    with tempfile.TemporaryDirectory(prefix="lorafusion-transfer-") as folder:
        result = Path(folder, "result.json")
        try:
            ended = subprocess.run(
                [sys.executable, "-m", "lorafusion.profiling.transfer", str(result)],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ProfileError(
                f"the two processes that measure transfers were not done after {TIMEOUT_S} s. Is "
                "the machine busy, or its loopback network blocked?"
            ) from error
        if ended.returncode or not result.exists():
            raise ProfileError(
                f"the two processes that measure transfers ended with code {ended.returncode}:\n"
                f"{ended.stderr[-_SAID:]}"
            )
        seconds = json.loads(result.read_text(encoding="utf-8"))
    return fit_line([float(size) for size in SIZES], seconds)


def main(result: Path) -> int:
    """Fork two ranks, let them talk, and return what to exit with."""
    # In this process rather than in its forks.
    import torch

    from lorafusion.launch.world import World

    torch.set_num_threads(1)  # a fork must not need threads that its parent has started
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    host = socket.gethostname()
    for rank in range(2):
        if os.fork() == 0:
            _rank(World(rank, 2, rank, 2, f"localhost:{port}", host), result)
    codes = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(2)]
    return max(map(abs, codes))


def _rank(world: object, result: Path) -> None:
    from lorafusion.launch.team import TeamOptions, join_team
    from lorafusion.launch.world import World

    assert isinstance(world, World)
    code = 1
    try:
        with join_team(TeamOptions(world)) as team:
            found = _talk(team)
        if world.rank == 0:
            result.write_text(json.dumps(found), encoding="utf-8")
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _talk(team: Team) -> list[float]:
    """There and back, size by size; the seconds of one way on rank 0."""
    import torch

    found: list[float] = []
    for size in SIZES:
        message = torch.zeros(size, dtype=torch.uint8, device=team.device)
        times: list[float] = []
        for _ in range(TURNS):
            began = time.perf_counter()
            if team.down is not None:
                team.down.send(message)
                team.down.receive(size).wait()
            elif team.up is not None:
                team.up.send(team.up.receive(size).wait())
            times.append((time.perf_counter() - began) / 2)
        found.append(median(times))
    return found


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
