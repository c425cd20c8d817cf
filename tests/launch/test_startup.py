"""What is refused before anything is loaded: clearly, on rank 0, with code 2 on all ranks."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.conftest import make_llama, make_tokenizer
from tests.launch.conftest import PROGRAM, ROOT, Start, Started, StartRanks, free_port, write_run

pytestmark = pytest.mark.multiproc
ADDRESS = {"WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": 1}


def all_refuse(ranks: list[Started], folder: Path, *words: str) -> None:
    """With these words on rank 0's stderr alone, and no traceback."""
    for rank in ranks:
        rank.end()
    assert [rank.code for rank in ranks] == [2] * len(ranks), [rank.err for rank in ranks]
    for word in words:
        assert word in ranks[0].err
    for rank in ranks:
        assert "Traceback" not in rank.err
    assert "leads" not in ranks[0].out
    for rank in range(1, len(ranks)):
        log = (folder / "out" / "logs" / f"rank-{rank}.log").read_text()
        assert "ended by rank 0, exit code 2" in log or "--stages" in words[0]


def test_good_ranks_start(start_ranks: StartRanks, job_file: Path, tmp_path: Path) -> None:
    ranks = start_ranks(2, PROGRAM, job_file, "fine", 0, "--output", tmp_path / "out")
    for rank in ranks:
        rank.end()
    assert [rank.code for rank in ranks] == [0, 0], [rank.err for rank in ranks]
    assert "finished" in ranks[0].out
    log = (tmp_path / "out" / "logs" / "rank-1.log").read_text()
    assert "this goes to the log" in log
    assert "rank 1 of 2" in log
    assert "done, exit code 0" in log


def test_another_job_file_on_one_rank(
    start_ranks: StartRanks, job_file: Path, tiny_base: Path, tmp_path: Path
) -> None:
    other = write_run(tmp_path / "other.yaml", tiny_base, tmp_path, deterministic=True)
    out = tmp_path / "out"
    files = [[job_file, "fine", 0], [other, "fine", 0]]
    ranks = start_ranks(2, PROGRAM, "--output", out, each=files)
    all_refuse(ranks, tmp_path, "the job file's hash: rank 0 (stage 0) on ", "rank 1 (stage 1) on ")


def test_another_version_on_one_rank(start: Start, job_file: Path, tmp_path: Path) -> None:
    fake = tmp_path / "fake"
    (fake / "transformers-1.2.3.dist-info").mkdir(parents=True)
    (fake / "transformers-1.2.3.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: transformers\nVersion: 1.2.3\n"
    )
    where = {"WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": free_port()}
    arguments = (PROGRAM, job_file, "fine", 0, "--output", tmp_path / "out")
    ranks = [
        start(*arguments, RANK=0, **where),
        start(*arguments, RANK=1, **where, PYTHONPATH=f"{fake}:{ROOT}"),
    ]
    all_refuse(
        ranks, tmp_path, "transformers: rank 0 (stage 0) on ", "has 1.2.3", "the same on all"
    )


def test_a_job_file_that_is_missing_on_one_rank(
    start_ranks: StartRanks, job_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    files = [[job_file, "fine", 0], [tmp_path / "none.yaml", "fine", 0]]
    ranks = start_ranks(2, PROGRAM, "--output", out, each=files)
    all_refuse(ranks, tmp_path, "rank 1 (stage 1) on ", "none.yaml")


def test_a_bad_job_file(start_ranks: StartRanks, tiny_base: Path, tmp_path: Path) -> None:
    bad = write_run(tmp_path / "bad.yaml", tiny_base, tmp_path, dtype="float17")
    ranks = start_ranks(2, PROGRAM, bad, "fine", 0, "--output", tmp_path / "out")
    all_refuse(ranks, tmp_path, "float17")


def test_stages_and_ranks_differ(start_ranks: StartRanks, job_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ranks = start_ranks(2, PROGRAM, job_file, "fine", 0, "--stages", 3, "--output", out)
    all_refuse(ranks, tmp_path, "--stages is 3, but there are 2 ranks", "--nproc-per-node 3")


def test_replicas_and_ranks_differ(start_ranks: StartRanks, job_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    grid = ("--stages", 2, "--replicas", 2)
    ranks = start_ranks(2, PROGRAM, job_file, "fine", 0, *grid, "--output", out)
    said = "--stages is 2 and --replicas 2, but there are 2 ranks", "--nproc-per-node 4"
    all_refuse(ranks, tmp_path, *said)


def test_another_grid_on_one_rank(start_ranks: StartRanks, job_file: Path, tmp_path: Path) -> None:
    grids = [(job_file, "fine", 0, "--stages", s, "--replicas", 2 // s) for s in (1, 2)]
    ranks = start_ranks(2, PROGRAM, "--output", tmp_path / "out", each=grids)
    all_refuse(ranks, tmp_path, "--replicas: rank 0 (stage 0 of replica 0) on ", "has 2, rank 1")


def test_more_stages_than_layers(start_ranks: StartRanks, job_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ranks = start_ranks(3, PROGRAM, job_file, "fine", 0, "--stages", 3, "--output", out)
    all_refuse(ranks, tmp_path, "3 stages for 2 layers; allowed: 1 to 2")


def test_a_base_that_is_not_there(start_ranks: StartRanks, tmp_path: Path) -> None:
    file = write_run(tmp_path / "run.yaml", tmp_path / "nowhere", tmp_path)
    ranks = start_ranks(2, PROGRAM, file, "fine", 0, "--output", tmp_path / "out")
    all_refuse(ranks, tmp_path, "nowhere")


def test_the_port_is_taken(start_ranks: StartRanks, job_file: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        ranks = start_ranks(
            2,
            PROGRAM,
            *(job_file, "fine", 0, "--start", 3, "--output", tmp_path / "out"),
            port=taken.getsockname()[1],
        )
        for rank in ranks:
            rank.end(20)
    assert [rank.code for rank in ranks] == [2, 2], [rank.err for rank in ranks]
    assert "another program may use the port" in ranks[0].err
    assert "rank 1 (stage 1)" in (ranks[1].err + (tmp_path / "out/logs/rank-1.log").read_text())
    assert "Traceback" not in ranks[0].err + ranks[1].err


def test_a_rank_that_never_comes(start: Start, job_file: Path, tmp_path: Path) -> None:
    where = {"WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": free_port()}
    arguments = (job_file, "fine", 0, "--start", 3, "--output", tmp_path / "out")
    alone = start(PROGRAM, *arguments, RANK=0, **where).end(20)
    assert alone.code == 2
    assert "rank 1 (stage 1) did not come to localhost:" in alone.err


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, "RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT missing"),
        ({"RANK": 2, **ADDRESS}, "RANK is 2, but WORLD_SIZE 2"),
        ({"RANK": "x", **ADDRESS}, "RANK is 'x'"),
    ],
)
def test_no_environment(
    start: Start, job_file: Path, environment: dict[str, object], words: str
) -> None:
    found = start("-m", "lorafusion.launch", job_file, "--stages", 2, **environment).end()
    assert found.code == 2
    assert words in found.err
    assert "torchrun" in found.err
    assert "Traceback" not in found.err


def test_generations_with_stages_are_refused(start: Start, job_file: Path) -> None:
    arguments = ("-m", "lorafusion", "train", job_file, "--stages", 2, "--show-generation")
    found = start(*arguments).end()
    assert found.code == 2
    assert "whole base in one process" in found.err.replace("\n", " ").replace("│ ", "")


def test_layers_are_counted_from_the_config(
    start_ranks: StartRanks, tmp_path: Path, job_file: Path
) -> None:
    base = tmp_path / "four"
    base.mkdir()
    make_tokenizer(base)
    make_llama(base, layers=4)
    file = write_run(tmp_path / "four.yaml", base, tmp_path)
    out = tmp_path / "out"
    ranks = start_ranks(3, PROGRAM, file, "fine", 0, "--stages", 3, "--output", out)
    assert [rank.end().code for rank in ranks] == [0, 0, 0], [rank.err for rank in ranks]
