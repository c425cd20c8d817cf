"""How the ranks of a start find that they can train together, all of them or none."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import timedelta

from torch.distributed.distributed_c10d import PrefixStore, Store

from lorafusion.errors import LaunchError, LorafusionError
from lorafusion.launch.codes import BAD_INPUT, EndedByRankZero
from lorafusion.launch.report import conclusion
from lorafusion.launch.startup import Facts, unreachable
from lorafusion.launch.world import World

# Ranks read the verdict a moment after rank 0 has written it.
_LINGER_S = 10.0
_PAUSE_S = 0.05
_START = "start"
"""Key of the name of the start that is on."""


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
        raise LaunchError(unreachable(world, timeout_s, str(error))) from error
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


def _all_facts(store: Store, world: World, timeout: timedelta) -> list[Facts]:
    keys = [f"facts/{rank}" for rank in range(world.ranks)]
    try:
        store.wait(keys, timeout)
    except RuntimeError as error:
        missing = [rank for rank, key in enumerate(keys) if not store.check([key])]
        names = ", ".join(world.name(rank) for rank in missing)
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
