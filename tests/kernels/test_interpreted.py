"""Runs the Triton kernels' tests in processes whose triton interprets: see interpreter.py."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = sorted(path.name for path in HERE.glob("test_triton_*.py"))

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def run(name: str, markers: str) -> None:
    pytest_ = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=5"]
    result = subprocess.run(
        [*pytest_, "-m", markers, str(HERE / name)],
        cwd=HERE.parents[1],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode in (0, 5), result.stdout + result.stderr  # 5: nothing has the marker


@pytest.mark.multiproc
@pytest.mark.parametrize("name", FILES)
def test_interpreted(name):
    run(name, "not slow and not gpu")


@pytest.mark.multiproc
@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_interpreted_slow(name):
    run(name, "slow and not gpu")
