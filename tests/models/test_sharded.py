"""A base that is cut over ranks computes, bit for bit, what the whole one does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models.pieces import write_family

pytestmark = pytest.mark.multiproc
ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("sharded_program.py")


def test_sharded_stage_is_the_whole_one(tmp_path: Path) -> None:
    """In any order of passes, whatever raises; and nothing is gathered twice as long as needed."""
    folders = [tmp_path / name for name in ("gemma3-tied", "llama-tied", "gpt2-untied")]
    for folder in folders:
        family, _, head = folder.name.partition("-")
        write_family(family, folder, tied=head == "tied")
    for rank in run_ranks(2, PROGRAM, *folders):
        assert rank.returncode == 0, rank.stderr
        for folder in folders:
            assert f"{folder.name} is equal\n" in rank.stdout


def run_ranks(
    count: int, *arguments: object, **environment: str
) -> list[subprocess.CompletedProcess[str]]:
    """Start ranks by hand; what each has printed."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=ROOT,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(ROOT),
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(count),
                "MASTER_ADDR": "localhost",
                "MASTER_PORT": str(port),
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        ended = [process.communicate(timeout=180) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *said)
        for process, said in zip(processes, ended, strict=True)
    ]
