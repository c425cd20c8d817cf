"""Gradients of one step over two stages, beside those that torch.distributed.pipelining gives.

Where torch can do the same at all: one job, samples of equal length, plain LoRA without dropout.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import make_llama, make_tokenizer
from tests.training.runs import figure

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("pipelining_program.py")


@pytest.mark.multiproc
def test_gradients_are_those_of_torchs_pipelining(tmp_path: Path) -> None:
    base = tmp_path / "base"
    make_tokenizer(base)
    make_llama(base, layers=4)
    ended = subprocess.run(
        [sys.executable, str(PROGRAM), str(base), str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    found = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
    for schedule in ("ScheduleGPipe", "Schedule1F1B"):
        apart = {**found[0][schedule], **found[1][schedule]}
        assert len(apart) == 4 * 7 * 2  # A and B of seven linears in each of four layers
        figure(f"gradients of two stages, ours and torch's {schedule}", max(apart.values()))
        assert all(difference < 1e-10 for difference in apart.values())
