"""What all ranks compare before anything is loaded, over the store they meet at.

Nothing but the store is used: a mistake must not end in a connection that waits for a rank that has
left.
"""

from __future__ import annotations

import hashlib
import platform
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from torch import distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

from lorafusion.errors import LaunchError
from lorafusion.launch.world import World
from lorafusion.training.grid import Grid

PACKAGES = ("lorafusion", "torch", "transformers")
JOB_FILE = "the job file's hash"


@dataclass(frozen=True)
class Facts:
    """What one rank knows of itself.

    Attributes:
        host: Its machine.
        same: What must be the same on all ranks, by name.
        error: Why it cannot go on, or None.
    """

    host: str
    same: Mapping[str, str] = field(default_factory=dict[str, str])
    error: str | None = None


def gather_facts(
    world: World, file: Path, *, grid: Grid, mode: str, error: Exception | None
) -> Facts:
    """Those of this rank; ``error`` is what it has met so far."""
    same = {"Python": platform.python_version()}
    same |= {package: _version(package) for package in PACKAGES}
    same |= {"--stages": str(grid.stages), "--replicas": str(grid.replicas)}
    same |= {"--replica-mode": mode, JOB_FILE: _digest(file)}
    return Facts(world.host, same, None if error is None else str(error))


def meet_at_store(world: World, timeout_s: float) -> Store:
    """Connect to the store at the address that torchrun gives; by hand, rank 0 opens it there.

    Raises:
        LaunchError: It cannot be reached in time, or its port is taken.
    """
    found: Future[Store] = Future()

    def connect() -> None:
        try:
            found.set_result(_connect(world, timeout_s))
        except Exception as error:
            found.set_exception(error)

    # On a thread: another program's port may take the connection and never answer, and torch then
    # waits without end.
    threading.Thread(target=connect, name="store", daemon=True).start()
    try:
        return found.result(timeout_s + 1)
    except Exception as error:
        raise LaunchError(unreachable(world, timeout_s, str(error))) from error


def _connect(world: World, timeout_s: float) -> Store:
    host, _, port = world.address.rpartition(":")
    store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage] - documented, not listed
        host,
        int(port),
        is_master=world.rank == 0 and not world.has_store,
        timeout=timedelta(seconds=timeout_s),
        wait_for_workers=False,
    )
    return PrefixStore("lorafusion", store)


def compare(world: World, facts: Sequence[Facts]) -> None:
    """Raise unless all ranks, in order, can train together.

    Raises:
        LaunchError: What a rank cannot, or what differs, and on which ranks.
    """
    lines = [
        f"{_named(world, rank, one)}: {one.error}" for rank, one in enumerate(facts) if one.error
    ]
    if not lines:
        for name, here in facts[0].same.items():
            others = [
                f"{_named(world, rank, one)} has {one.same.get(name)}"
                for rank, one in enumerate(facts)
                if one.same.get(name) != here
            ]
            if others:
                lines.append(
                    f"{name}: {_named(world, 0, facts[0])} has {here}, {', '.join(others)}"
                )
        if lines:
            lines.insert(0, "The ranks are not alike; allowed: the same on all.")
    if lines:
        raise LaunchError("\n".join(lines))


def check_grid(world: World, grid: Grid) -> None:
    """There is one rank for each stage of each replica.

    Raises:
        LaunchError: There is not.
    """
    if world.ranks == grid.ranks:
        return
    if grid.replicas == 1:
        raise LaunchError(
            f"--stages is {grid.stages}, but there are {world.ranks} ranks (WORLD_SIZE); allowed: "
            f"one rank a stage. Give --stages {world.ranks}, or start {grid.stages} ranks: "
            f"torchrun --nproc-per-node {grid.stages} on one machine."
        )
    raise LaunchError(
        f"--stages is {grid.stages} and --replicas {grid.replicas}, but there are {world.ranks} "
        "ranks (WORLD_SIZE); allowed: one rank for each stage of each replica. Give --stages and "
        f"--replicas whose product is {world.ranks}, or start {grid.ranks} ranks: torchrun "
        f"--nproc-per-node {grid.ranks} on one machine."
    )


def unreachable(world: World, timeout_s: float, why: str) -> str:
    """What to say of it."""
    holds = (
        "cannot listen there: another program may use the port"
        if world.rank == 0
        else (f"has not been reached within {timeout_s:g} s")
    )
    reason = f" ({why.splitlines()[0]})" if why else ""
    return (
        f"{world.name()} on {world.host}: rank 0, at {world.address}, {holds}"
        f"{reason}. Let torchrun choose the port, or set MASTER_ADDR and "
        "MASTER_PORT to rank 0's machine and a free port on it, the same on all ranks."
    )


def _named(world: World, rank: int, facts: Facts) -> str:
    return f"{world.name(rank)} on {facts.host}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _digest(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    except OSError as error:
        return f"none ({error.strerror})"
