"""A rank that joins a team and does what its argument names: links and post alone."""

from __future__ import annotations

import os
import random
import sys
import time

import torch

from lorafusion.errors import LorafusionError
from lorafusion.launch import post as post_module
from lorafusion.launch.codes import exit_code
from lorafusion.launch.team import TeamOptions, join_team
from lorafusion.launch.world import World
from lorafusion.training.team import Link, Team
from lorafusion.training.trace import Trace

START_TIMEOUT_S = 20.0


def say(text: str) -> None:
    """A line."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def message(seed: int, size: int) -> torch.Tensor:
    """Bytes that tell one message from another."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator)


def links(team: Team) -> None:
    """Big and small messages in both directions at once, with all receives posted before."""
    sizes = [random.Random(seed).choice([1, 64, 1000, 3_000_001]) for seed in range(40)]
    sizes[:2] = [0, 5]
    neighbours = [(link, up) for link, up in ((team.up, True), (team.down, False)) if link]
    posted = [[link.receive(size) for size in sizes] for link, _ in neighbours]
    for seed, size in enumerate(sizes):
        for link, up in neighbours:
            link.send(message(seed + 100 * up, size))
    for (_, up), receipts in zip(neighbours, posted, strict=True):
        expected = [message(seed + 100 * (not up), size) for seed, size in enumerate(sizes)]
        found = [receipt.wait() for receipt in reversed(receipts)][::-1]  # in any order
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def slow_receiver(team: Team) -> None:
    """Sends return long before the other end has posted a receive; what is sent is kept."""
    if team.down is not None:
        began = time.monotonic()
        for seed in range(20):
            team.down.send(message(seed, 2_000_000))
        assert time.monotonic() - began < 2, "a send has waited"
    if team.up is not None:
        time.sleep(3)
        for seed in range(20):
            assert torch.equal(team.up.receive(2_000_000).wait(), message(seed, 2_000_000))


def ring(team: Team) -> None:
    """Post: what is published comes in order, what is reported arrives."""
    if team.first:
        for number in range(50):
            team.post.publish({"number": number, "text": "ä" * number})
        team.post.report({"from": 0})
        reports = sorted([team.post.wait() for _ in range(team.stages)], key=lambda each: each[0])
        assert reports == [(rank, {"from": rank}) for rank in range(team.stages)]
        assert not team.post.poll()
        team.post.publish({"kind": "end"})
        return
    for number in range(50):
        assert team.post.wait() == (0, {"number": number, "text": "ä" * number})
    team.post.report({"from": team.stage})
    while not (found := team.post.poll()):
        time.sleep(0.01)
    assert list(found) == [(0, {"kind": "end"})]


def acknowledged_by_threads(team: Team) -> None:
    """Publish does not wait for the main threads of the others."""
    if team.first:
        began = time.monotonic()
        team.post.publish({"n": 1})
        assert time.monotonic() - began < 1
    else:
        time.sleep(2)
        assert team.post.wait() == (0, {"n": 1})


def altered(team: Team) -> None:
    """Rank 1 gets the second message otherwise than it was sent."""
    if team.stage == 1:
        right = post_module.chain
        post_module.chain = lambda digest, body: right(digest, body.replace("2", "3"))
    team.post.publish({"n": 1}) if team.first else team.post.wait()
    team.post.publish({"n": 2}) if team.first else team.post.wait()
    team.post.wait()


def idle(team: Team) -> None:
    """Nothing is said for longer than any timeout of the groups; receives stand open."""
    receipt = team.up.receive(8) if team.up else None
    time.sleep(START_TIMEOUT_S + 2)
    if team.first:
        team.post.publish({"late": True})
    else:
        assert team.post.wait()[1] == {"late": True}
    if team.down:
        team.down.send(message(7, 8))
    if receipt:
        assert torch.equal(receipt.wait(), message(7, 8))


def leave(team: Team) -> None:
    """Rank 1 goes without a word; the others wait in a link, and rank 0 in the post."""
    if team.stage == 1:
        os._exit(0)
    wait_for(team.up) if team.up else team.post.wait()


def leave_waited_for(team: Team) -> None:
    """The last rank goes; all others wait for their next one."""
    if team.last:
        os._exit(0)
    wait_for(team.down)


def wait_for(link: Link | None) -> None:
    """For a message that never comes."""
    assert link is not None
    link.receive(10).wait()


def main() -> None:
    """Run a mode, named by the first argument; say how it ended."""
    global START_TIMEOUT_S
    mode = sys.argv[1]
    START_TIMEOUT_S = 2.0 if mode == "idle" else START_TIMEOUT_S
    torch.set_num_threads(1)
    world = World.read()

    def recorder(offset: float) -> Trace:
        say(f"offset {offset}")
        return Trace.silent()

    options = TeamOptions(world, recorder=recorder, start_timeout_s=START_TIMEOUT_S)
    began = time.monotonic()
    try:
        with join_team(options) as team:
            globals()[mode](team)
            done = time.monotonic()
    except LorafusionError as error:
        say(f"{type(error).__name__} after {time.monotonic() - began:.1f} s: {error}")
        os._exit(exit_code(error))
    say(f"closed in {time.monotonic() - done:.2f} s")


if __name__ == "__main__":
    main()
