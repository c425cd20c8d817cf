"""A rank that is lost, fails or hangs ends all others, with a message that says which and how."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from tests.launch.conftest import PROGRAM, Started, StartRanks

pytestmark = pytest.mark.multiproc


@pytest.fixture
def run(start_ranks: StartRanks, job_file: Path, tmp_path: Path):
    """Runs two ranks until they have ended; ``rank`` has the fault at its place 5."""

    def begin(mode: str, rank: int, *options: object, wait: bool = True) -> list[Started]:
        out = ("--output", tmp_path / "out")
        ranks = start_ranks(2, PROGRAM, job_file, mode, rank, *out, *options)
        return [one.end() for one in ranks] if wait else ranks

    return begin


def log(folder: Path, rank: int) -> str:
    return (folder / "out" / "logs" / f"rank-{rank}.log").read_text()


@pytest.mark.parametrize("mode", ["kill", "segfault"])
def test_rank_1_dies(run, tmp_path: Path, mode: str) -> None:
    began = time.monotonic()
    ranks = run(mode, 1)
    assert time.monotonic() - began < 90  # the start included; no waiting for a hang
    assert ranks[0].code == 1
    assert ranks[1].code < 0
    assert "error: rank 1 (stage 1) is gone" in ranks[0].err
    assert "Traceback" not in ranks[0].err
    if mode == "segfault":
        assert "Fatal Python error: Segmentation fault" in log(tmp_path, 1)
        assert "in fault" in log(tmp_path, 1)


def test_rank_0_dies(run, tmp_path: Path) -> None:
    ranks = run("kill", 0)
    assert ranks[1].code == 1
    assert "rank 0 (stage 0) is gone" in log(tmp_path, 1)


def test_rank_1_raises(run, tmp_path: Path) -> None:
    ranks = run("raise", 1)
    assert [rank.code for rank in ranks] == [1, 1]
    assert "rank 1 (stage 1) has ended with ZeroDivisionError: no such luck" in ranks[0].err
    assert "Traceback" not in ranks[0].err
    assert "rank_program.py" in log(tmp_path, 1)
    assert "Traceback" in log(tmp_path, 1)


def test_rank_1_leaves(run) -> None:
    ranks = run("exit", 1)
    assert ranks[0].code == 1
    assert ranks[1].code == 1, "a run that was left is no success"
    assert "rank 1 (stage 1) has ended with SystemExit: 0" in ranks[0].err


@pytest.mark.parametrize("rank", [0, 1])
def test_what_the_user_can_mend_is_code_2_everywhere(run, rank: int) -> None:
    ranks = run("user", rank)
    assert [each.code for each in ranks] == [2, 2], [each.err for each in ranks]
    name = "rank 1 (stage 1): " if rank else ""
    assert ranks[0].err.strip() == f"error: {name}rows.jsonl has no rows."


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_rank_is_found(run, tmp_path: Path, rank: int) -> None:
    ranks = run("stop", rank, "--hang", 2, "--pause", "0.2", wait=False)
    other = ranks[1 - rank].end()
    assert other.code == 1
    said = other.err if rank == 1 else log(tmp_path, 1)
    assert f"rank {rank} (stage {rank}) has not answered for 2 s" in said
    if rank == 1:
        assert re.search(r"rank 0 \(stage 0\): waiting for the rank behind .*since \d s", said)
        assert re.search(r"rank 1 \(stage 1\): does not answer; last (in|waiting)", said)
    assert "the stacks of all threads" in log(tmp_path, 1 - rank)


def test_a_rank_that_is_stuck_is_found(run, tmp_path: Path) -> None:
    ranks = run("stuck", 1, "--hang", 2)
    assert [rank.code for rank in ranks] == [1, 1]
    assert "No rank has done anything for 2 s" in ranks[0].err
    assert re.search(r"rank 0 \(stage 0\): waiting for the rank behind \(place 5\)", ranks[0].err)
    assert "in fault" in log(tmp_path, 1), "its stack says where"
    assert "the main thread did not end" in log(tmp_path, 1)


def test_a_slow_pipeline_does_not_hang(run) -> None:
    # Each waits for the other three times as long.
    ranks = run("slow", -1, "--hang", 1, "--pause", "0.3", "--spans", 10, "--places", 1)
    assert [rank.code for rank in ranks] == [0, 0], [rank.err for rank in ranks]
