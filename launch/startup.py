"""What all ranks compare before anything is loaded, over the store they meet at.

Nothing but the store is used: a mistake must not end in a connection that waits for a rank that has
left.
"""

from __future__ import annotations

import hashlib
import json
import platform
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from torch import distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

from lorafusion.errors import LaunchError, LorafusionError
from lorafusion.launch.codes import BAD_INPUT, EndedByRankZero
from lorafusion.launch.ranks import rank_name
from lorafusion.launch.report import conclusion
from lorafusion.launch.world import World

PACKAGES = ("lorafusion", "torch", "transformers")
JOB_FILE = "the job file's hash"
# Ranks read the verdict a moment after rank 0 has written it.
_LINGER_S = 10.0
_PAUSE_S = 0.05
_START = "start"
"""Key of the name of the start that is on."""


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


def gather_facts(world: World, file: Path, *, stages: int, error: Exception | None) -> Facts:
    """Those of this rank; ``error`` is what it has met so far."""
    same = {"Python": platform.python_version()}
    same |= {package: _version(package) for package in PACKAGES}
    same |= {"--stages": str(stages), JOB_FILE: _digest(file)}
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
        raise LaunchError(_unreachable(world, timeout_s, str(error))) from error


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


def agree(
    store: Store,
    world: World,
    facts: Facts,
    check: Callable[[Sequence[Facts]], None],
    timeout_s: float,
) -> Store:
    """Return on all ranks or on none.

    torchrun's store outlives a start, and its count of starts is not the same on all hosts: a host
    that has come back begins at 0, and one that joined others anew does not count that. So rank 0
    names each start, and the others know it by what they themselves have said in it.

    Args:
        store: Where they meet.
        world: Which rank this is.
        facts: What it knows of itself.
        check: What rank 0 does with the facts of all, in their order; raises what the user is to
            see.
        timeout_s: Within which every rank must have come.

    Returns:
        A part of the store that is this start's alone.

    Raises:
        LorafusionError: On rank 0: a rank did not come, or what ``check`` raises.
        EndedByRankZero: On the others then.
        LaunchError: Rank 0 did not answer.
    """
    try:
        if world.rank != 0:
            return _obey(store, world, facts, timeout_s + _LINGER_S)
        name = uuid.uuid4().hex
        own = PrefixStore(name, store)
        own.set("facts/0", _words(facts, name))
        store.set(_START, name)
    except LorafusionError:
        raise
    except RuntimeError as error:
        raise LaunchError(_unreachable(world, timeout_s, str(error))) from error
    verdict = ""
    try:
        check(_all_facts(own, world, timedelta(seconds=timeout_s)))
    except LorafusionError as error:
        verdict = str(error) or "error"
        raise
    except BaseException as error:
        verdict = f"{type(error).__name__}: {error}"
        raise
    finally:
        there = [rank for rank in range(1, world.ranks) if own.check([f"facts/{rank}"])]
        heard = {str(rank): json.loads(own.get(f"facts/{rank}"))["word"] for rank in there}
        own.set("verdict", json.dumps({"text": verdict, "heard": heard}))
        if verdict:
            _linger(own, there)
    return own


def compare(facts: Sequence[Facts]) -> None:
    """Raise unless all ranks, in order, can train together.

    Raises:
        LaunchError: What a rank cannot, or what differs, and on which ranks.
    """
    lines = [f"{_named(rank, one)}: {one.error}" for rank, one in enumerate(facts) if one.error]
    if not lines:
        for name, here in facts[0].same.items():
            others = [
                f"{_named(rank, one)} has {one.same.get(name)}"
                for rank, one in enumerate(facts)
                if one.same.get(name) != here
            ]
            if others:
                lines.append(f"{name}: {_named(0, facts[0])} has {here}, {', '.join(others)}")
        if lines:
            lines.insert(0, "The ranks are not alike; allowed: the same on all.")
    if lines:
        raise LaunchError("\n".join(lines))


def check_stages(world: World, stages: int) -> None:
    """There is one rank a stage.

    Raises:
        LaunchError: There is not.
    """
    if world.ranks != stages:
        raise LaunchError(
            f"--stages is {stages}, but there are {world.ranks} ranks (WORLD_SIZE); allowed: one "
            f"rank a stage. Give --stages {world.ranks}, or start {stages} ranks: torchrun "
            f"--nproc-per-node {stages} on one machine."
        )


def _all_facts(store: Store, world: World, timeout: timedelta) -> list[Facts]:
    keys = [f"facts/{rank}" for rank in range(world.ranks)]
    try:
        store.wait(keys, timeout)
    except RuntimeError as error:
        missing = [rank for rank, key in enumerate(keys) if not store.check([key])]
        names = ", ".join(rank_name(rank) for rank in missing)
        raise LaunchError(
            f"{names} did not come to {world.address} within {timeout.total_seconds():g} s. Start "
            "all ranks at about the same time (torchrun does), see whether that address can be "
            "reached from every machine, or give --start-timeout more seconds."
        ) from error
    return [Facts(**json.loads(store.get(key))["facts"]) for key in keys]


def _obey(store: Store, world: World, facts: Facts, timeout_s: float) -> Store:
    deadline = time.monotonic() + timeout_s
    word = uuid.uuid4().hex
    name, own = "", store
    while True:
        now = store.get(_START).decode() if store.check([_START]) else ""
        if now != name:  # the one before may be of an earlier start
            name, own = now, PrefixStore(now, store)
            own.set(f"facts/{world.rank}", _words(facts, word))
        if name and own.check(["verdict"]):
            verdict = json.loads(own.get("verdict"))
            if verdict["heard"].get(str(world.rank)) == word:
                break
        code = conclusion()
        if code is not None:
            raise EndedByRankZero("rank 0 left before the ranks had met", code)
        if time.monotonic() > deadline:
            raise RuntimeError("no answer")
        time.sleep(_PAUSE_S)
    if verdict["text"]:
        own.set(f"seen/{world.rank}", "")
        raise EndedByRankZero(verdict["text"], BAD_INPUT)
    return own


def _words(facts: Facts, word: str) -> str:
    """What a rank says of itself, and a word by which it knows that it was heard."""
    return json.dumps({"facts": asdict(facts), "word": word})


def _linger(store: Store, there: Sequence[int]) -> None:
    """Where rank 0 holds the store, it must not leave before the others have read the verdict."""
    # A rank that has left meanwhile will not read it.
    with suppress(RuntimeError):
        store.wait([f"seen/{rank}" for rank in there], timedelta(seconds=_LINGER_S))


def _unreachable(world: World, timeout_s: float, why: str) -> str:
    holds = (
        "cannot listen there: another program may use the port"
        if world.rank == 0
        else (f"has not been reached within {timeout_s:g} s")
    )
    reason = f" ({why.splitlines()[0]})" if why else ""
    return (
        f"{rank_name(world.rank)} on {world.host}: rank 0, at {world.address}, {holds}"
        f"{reason}. Let torchrun choose the port, or set MASTER_ADDR and "
        "MASTER_PORT to rank 0's machine and a free port on it, the same on all ranks."
    )


def _named(rank: int, facts: Facts) -> str:
    return f"{rank_name(rank)} on {facts.host}"


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
