"""What ranks tell the launcher that started torchrun, through files of a folder it has made.

torchrun knows of one kind of end: a rank that exits with anything but 0 has crashed, and is started
anew where restarts are allowed. A run that ended as it should, with failed jobs, bad input or by
a signal, must not be.
"""

from __future__ import annotations

import os
from pathlib import Path

from lorafusion.launch.codes import SIGNALLED

FOLDER_VARIABLE = "LORAFUSION_LAUNCH_DIR"
EXIT_CODE_FILE = "exit-code"
HOSTS_VARIABLE = "GROUP_WORLD_SIZE"  # torchrun's: one agent a host


def announce(rank: int) -> None:
    """This process is a rank. Nothing without a launcher of ours."""
    folder = _folder()
    if folder is not None:
        _write(folder / f"rank-{rank}.pid", os.getpid())


def conclude(rank: int, code: int) -> int:
    """The run has ended with ``code``, and is not to be started anew.

    Over several hosts a signal is torchrun's, which may stop the ranks to start them again with a
    host that has come back: that is no end of the run.

    Returns:
        What this process has to exit with.
    """
    folder = _folder()
    if folder is None or (code > SIGNALLED and int(os.environ.get(HOSTS_VARIABLE, "1")) > 1):
        return code
    if rank == 0:
        _write(folder / EXIT_CODE_FILE, code)
    return 0


def conclusion() -> int | None:
    """What rank 0 has concluded, also in an earlier start; None without a launcher of ours."""
    folder = _folder()
    return None if folder is None else read_conclusion(folder)


def read_pids(folder: Path) -> dict[int, int]:
    """Process of each rank that has begun."""
    found = {int(path.stem.split("-")[1]): _read(path) for path in folder.glob("rank-*.pid")}
    return {rank: pid for rank, pid in found.items() if pid is not None}


def read_conclusion(folder: Path) -> int | None:
    """What the run ended with; None if it has not ended as it should."""
    return _read(folder / EXIT_CODE_FILE)


def _folder() -> Path | None:
    name = os.environ.get(FOLDER_VARIABLE)
    return Path(name) if name else None


def _write(path: Path, number: int) -> None:
    whole = path.with_suffix(".part")
    whole.write_text(str(number))
    whole.replace(path)


def _read(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
