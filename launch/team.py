"""Joins the ranks of a run to a team: the process groups, the links, the post, the recorder."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from lorafusion.errors import LaunchError, LorafusionError
from lorafusion.launch.clocks import clock_offset
from lorafusion.launch.ending import end_all, listen_for_ends
from lorafusion.launch.links import NeighbourLink, connect_neighbours
from lorafusion.launch.peers import connect_peers
from lorafusion.launch.post import StarPost
from lorafusion.launch.ranks import FOREVER
from lorafusion.launch.startup import meet_at_store
from lorafusion.launch.watchdog import Watchdog, WatchedRecorder
from lorafusion.launch.world import World
from lorafusion.training.team import NoPeers, Recorder, Team
from lorafusion.training.trace import Trace

START_TIMEOUT_S = 120.0
HANG_TIMEOUT_S = 300.0
# For the last messages, when nobody has anything to do any more. After an error, for those that say
# so: whoever hangs does not take them.
GOODBYE_S, ERROR_GOODBYE_S = 10.0, 2.0


@dataclass(frozen=True)
class TeamOptions:
    """How the ranks are joined.

    Attributes:
        world: Which rank this is.
        recorder: Makes this rank's recorder; given the seconds to add to this rank's
            ``time.perf_counter()`` to get rank 0's. None: nothing is kept.
        store: Where the ranks have met already, for instance to compare versions.
        start_timeout_s: Within which every rank must have come.
        hang_timeout_s: Without progress on any rank, until the run is ended.
        on_problem: Told on some thread what ends the run early, before anyone raises it.
        on_hang: Called on some thread of every rank when the run hangs.
        gathers: Whether the ranks share the weights of one base.
    """

    world: World
    recorder: Callable[[float], Recorder] | None = None
    store: Store | None = None
    start_timeout_s: float = START_TIMEOUT_S
    hang_timeout_s: float = HANG_TIMEOUT_S
    on_problem: Callable[[LorafusionError], None] = lambda _: None
    on_hang: Callable[[], None] = lambda: None
    gathers: bool = False


def rank_device(world: World) -> torch.device:
    """The GPU with this rank's number on its machine, else the CPU.

    Raises:
        LaunchError: There are GPUs, but fewer than ranks.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if world.local_rank >= count:
        raise LaunchError(
            f"{world.local_ranks} ranks were started on {world.host}, which has {count} GPUs; "
            "allowed: one rank a GPU. Start fewer, or hide the GPUs with CUDA_VISIBLE_DEVICES='' "
            "to train on the CPU."
        )
    return torch.device("cuda", world.local_rank)


@contextmanager
def join_team(options: TeamOptions) -> Generator[Team]:
    """Connect this rank to the others; at the end wait until all have finished.

    An error inside ends all ranks: rank 0 raises the first one that any rank met, the others
    :class:`lorafusion.launch.ending.EndedByRankZero`.

    Raises:
        LaunchError: The ranks do not find one another within the time.
        LostRankError: A rank is gone.
    """
    device = rank_device(options.world)
    try:
        post = _connect(options, device)
        grid, within = options.world.grid, timedelta(seconds=options.start_timeout_s)
        up, down = connect_neighbours(grid, device, within)
        peers = connect_peers(grid, device, within)
        backend = "nccl" if device.type == "cuda" else "gloo"
        gathering = dist.new_group(backend=backend, timeout=FOREVER) if options.gathers else None
    except LorafusionError:
        raise
    except (RuntimeError, ValueError) as error:
        raise LaunchError(f"The ranks of the run cannot connect to one another: {error}") from error
    links = [link for link in (up, down) if link is not None]
    links += [] if peers is None else peers.links
    for tell in (options.on_problem, *(link.fail for link in links)):
        post.on_problem(tell)
    dog, goodbye_s = None, ERROR_GOODBYE_S
    try:
        offset = clock_offset(post)
        inner = Trace.silent() if options.recorder is None else options.recorder(offset)
        recorder = WatchedRecorder(inner)
        team = Team(
            stage=grid.stage(options.world.rank),
            stages=grid.stages,
            device=device,
            post=post,
            recorder=recorder,
            up=up,
            down=down,
            replica=grid.replica(options.world.rank),
            replicas=grid.replicas,
            peers=peers or NoPeers(),
            gathering=gathering,
        )
        post.meet()
        dog = Watchdog(post, recorder, timeout_s=options.hang_timeout_s, on_hang=options.on_hang)
        yield team
        for link in links:
            link.drain()
        post.meet()
        goodbye_s = GOODBYE_S
    except BaseException as error:
        ending = end_all(post, error)
        if ending is error:
            raise
        raise ending from error
    finally:
        if dog is not None:
            dog.stop()
        _close(post, links, time.monotonic() + goodbye_s)


def _connect(options: TeamOptions, device: torch.device) -> StarPost:
    world = options.world
    if device.type == "cuda":
        torch.cuda.set_device(device)
    timeout = timedelta(seconds=options.start_timeout_s)
    dist.init_process_group(
        "gloo",
        store=options.store or meet_at_store(world, options.start_timeout_s),
        rank=world.rank,
        world_size=world.ranks,
        timeout=timeout,
    )
    group = dist.new_group(backend="gloo", timeout=timeout)
    assert isinstance(group, dist.ProcessGroup)
    post = StarPost(group, world.grid)
    listen_for_ends(post)
    return post


def _close(post: StarPost, links: list[NeighbourLink], deadline: float) -> None:
    """End all threads; the process groups stay where one of them still uses them."""
    ended = [post.close(deadline), *(link.close(deadline) for link in links)]
    if all(ended):
        dist.destroy_process_group()
