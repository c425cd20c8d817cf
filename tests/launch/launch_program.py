"""Starts ``rank_program.py`` as ``lorafusion train --stages 2`` starts its ranks.

``launch_program.py MAX_RESTARTS ARGUMENT...``
"""

from __future__ import annotations

import sys
from pathlib import Path

from lorafusion.launch.launcher import launch_here
from lorafusion.training.grid import Grid

if __name__ == "__main__":
    restarts, *arguments = sys.argv[1:]
    program = str(Path(__file__).with_name("rank_program.py"))
    sys.exit(launch_here([program, *arguments], grid=Grid(2), max_restarts=int(restarts)))
