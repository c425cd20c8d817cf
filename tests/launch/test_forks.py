"""Forked ranks: what rank 0 finds comes back, and none is left, however they end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lorafusion.errors import LaunchError
from lorafusion.launch.forks import start_forks

pytestmark = pytest.mark.multiproc
MODULE = "tests.launch.forks_program"


def running(word: str) -> Iterator[str]:
    """Processes of the program that were told ``word``."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it has ended meanwhile
            continue
        if f"{MODULE} {word}" in line:
            yield line


def none_left(word: str) -> bool:
    """Whether all end; a killed process may be there for a moment."""
    until = time.monotonic() + 10
    while list(running(word)) and time.monotonic() < until:
        time.sleep(0.05)
    return not list(running(word))


def test_what_rank_0_returns_comes_back() -> None:
    ranks, local_ranks, _ = start_forks(MODULE, ["numbers"], what="a test", timeout_s=100)
    assert ranks == local_ranks == 3


def test_the_first_that_fails_ends_the_others() -> None:
    with pytest.raises(LaunchError, match=r"(?s)a test ended with code 1.*does not want to"):
        start_forks(MODULE, ["fail"], what="a test", timeout_s=100)
    assert none_left("fail")


def test_a_hang_is_ended() -> None:
    with pytest.raises(LaunchError, match="not done after 8 s"):
        start_forks(MODULE, ["hang"], what="a test", timeout_s=8)
    assert none_left("hang")
