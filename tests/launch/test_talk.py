"""Links and post between real processes."""

from __future__ import annotations

import re

import pytest

from tests.launch.conftest import HERE, Started, StartRanks

pytestmark = pytest.mark.multiproc
TALK = HERE / "talk.py"


def ended_well(ranks: list[Started]) -> None:
    for rank in ranks:
        rank.end()
    assert [rank.code for rank in ranks] == [0] * len(ranks), [rank.err for rank in ranks]


@pytest.mark.parametrize("mode", ["links", "slow_receiver", "ring", "acknowledged_by_threads"])
def test_messages(start_ranks: StartRanks, mode: str) -> None:
    ranks = start_ranks(3, TALK, mode)
    ended_well(ranks)
    for rank in ranks:  # Python ends by itself, without a crash of a thread that still waits
        assert not rank.err, rank.err


def test_nothing_times_out_on_idle_channels(start_ranks: StartRanks) -> None:
    ended_well(start_ranks(2, TALK, "idle"))


def test_clocks_of_one_machine_agree(start_ranks: StartRanks) -> None:
    ranks = start_ranks(3, TALK, "ring")
    ended_well(ranks)
    offsets = [float(re.findall(r"offset (\S+)", rank.out)[0]) for rank in ranks]
    assert offsets[0] == 0
    assert 0 < max(map(abs, offsets)) < 0.05  # perf_counter is the machine's


def test_another_hash_ends_all(start_ranks: StartRanks) -> None:
    ranks = [rank.end() for rank in start_ranks(3, TALK, "altered")]
    assert [rank.code for rank in ranks] == [2, 2, 2]
    assert "LaunchError" in ranks[0].out
    assert "rank 1 (stage 1) received another plan than rank 0 sent" in ranks[0].out
    assert "rank 2" not in ranks[0].out


@pytest.mark.parametrize(("mode", "lost"), [("leave", 1), ("leave_waited_for", 2)])
def test_a_lost_rank_is_named_everywhere(start_ranks: StartRanks, mode: str, lost: int) -> None:
    ranks = [rank.end() for rank in start_ranks(3, TALK, mode)]
    others = [rank for rank in ranks if rank is not ranks[lost]]
    assert [rank.code for rank in others] == [1, 1], [rank.err for rank in ranks]
    for rank in others:
        assert f"rank {lost} (stage {lost}) is gone" in rank.out
    assert "LostRankError" in ranks[0].out
