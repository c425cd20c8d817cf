"""Ranks that save one job's checkpoints, each in a process of its own.

They are forks of this process, so that torch is imported once. Run as

* ``python saving_ranks.py kill ROOT SEED``: each line "ATTEMPT STAGES" on stdin starts that many
  ranks, which go on after the newest checkpoint and save step after step. One of them, drawn by
  chance, is killed at a random instant, the others soon after, in any order. Prints the step they
  went on after and the last one that rank 0 saw written.
* ``python saving_ranks.py full ROOT STAGES``: as many ranks save steps 1 and 2; the last one's
  disk is full between the two. Prints what rank 0 heard.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

import torch

from lorafusion.training.checkpoint import newest
from lorafusion.training.manifest import ManifestWriter
from lorafusion.training.shard_writer import Shard, ShardWriter, shard_name

NAMES = [f"layer{i}.lora_A" for i in range(6)]
SIZE = 10_000
FINGERPRINT = {"seed": 1}


def value(step: int, attempt: int, index: int) -> float:
    """Of all elements of the tensor: tells which attempt wrote it."""
    return step * 10_000.0 + attempt * 10 + index


@dataclass(frozen=True)
class Attempt:
    """``shards``: a pipe on which all ranks say what they have written. ``go``: rank 0 is ready."""

    root: Path
    number: int
    stages: int
    after: int
    shards: tuple[int, int]
    go: tuple[int, int]

    def tensors(self, stage: int, step: int, size: int = SIZE) -> dict[str, torch.Tensor]:
        mine = list(enumerate(NAMES))[stage :: self.stages]
        return {name: torch.full((size,), value(step, self.number, i)) for i, name in mine}

    def writer(self, stage: int, pool: ThreadPoolExecutor) -> ShardWriter:
        return ShardWriter(self.root, pool, shard_name(stage))

    def manifests(self, pool: ThreadPoolExecutor) -> ManifestWriter:
        names = [shard_name(stage) for stage in range(self.stages)]
        return ManifestWriter(self.root, pool, names, FINGERPRINT)

    def report(self, step: int, future: Future[Shard]) -> None:
        """Tell rank 0; a line this short arrives whole or not at all."""
        error = future.exception()
        said = {"error": str(error)} if error else future.result().to_json()
        os.write(self.shards[1], json.dumps([step, said]).encode() + b"\n")

    def heard(self) -> Iterator[tuple[int, dict[str, object]]]:
        """What the ranks have said, up to now."""
        os.set_blocking(self.shards[0], False)
        rest = b""
        while True:
            try:
                rest += os.read(self.shards[0], 1 << 16)
            except BlockingIOError:
                if not rest:
                    return
            *lines, rest = rest.split(b"\n")
            yield from map(json.loads, lines)


def new_attempt(root: Path, number: int, stages: int) -> Attempt:
    found = newest(root, report=lambda _: None)
    return Attempt(root, number, stages, found.step if found else 0, os.pipe(), os.pipe())


def save_forever(attempt: Attempt, stage: int, written: int) -> None:
    """A rank's life; rank 0 writes the steps that count to ``written``."""
    pace = random.Random(f"{attempt.number} {stage}")
    with ThreadPoolExecutor(1) as pool:
        writer, manifests = attempt.writer(stage, pool), attempt.manifests(pool)
        if stage == 0:
            manifests.start(attempt.after)
            os.write(attempt.go[1], bytes(attempt.stages))
        else:
            os.read(attempt.go[0], 1)
        for step in count(attempt.after + 1):
            time.sleep(pace.uniform(0, 0.004))
            future = writer.save(step, attempt.tensors(stage, step))
            future.add_done_callback(partial(attempt.report, step))
            if stage == 0:
                manifests.expect(step, {"t": step, "attempt": attempt.number})
                for at, shard in attempt.heard():
                    manifests.add(at, Shard.from_json(shard))
                if (newest_step := manifests.written) is not None:
                    os.write(written, b"%d\n" % newest_step)


def fork(work: Callable[[], None]) -> int:
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def kill(children: Sequence[int], delays: random.Random) -> None:
    """Each at a random instant, in a random order."""
    first = 0.15
    for child in delays.sample(children, len(children)):
        time.sleep(delays.uniform(0, first))
        os.kill(child, signal.SIGKILL)
        first = 0.01
    for child in children:
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "a rank ended by itself: its traceback is above"


def kill_at_random(root: Path, seed: int) -> None:
    delays = random.Random(seed)
    for line in sys.stdin:
        number, stages = map(int, line.split())
        attempt = new_attempt(root, number, stages)
        reader, written = os.pipe()
        lives = [partial(save_forever, attempt, stage, written) for stage in range(stages)]
        children = [fork(life) for life in lives]
        for end in (written, *attempt.shards, *attempt.go):
            os.close(end)
        kill(children, delays)
        with os.fdopen(reader) as lines:
            seen = [line.strip() for line in lines]
        sys.stdout.write(f"{attempt.after} {(seen or [attempt.after])[-1]}\n")
        sys.stdout.flush()


def save_twice(attempt: Attempt, stage: int) -> None:
    with ThreadPoolExecutor(1) as pool:
        writer = attempt.writer(stage, pool)
        for step, size in ((1, 10), (2, 50_000)):
            if (stage, step) == (attempt.stages - 1, 2):
                resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
            future = writer.save(step, attempt.tensors(stage, step, size))
            future.add_done_callback(partial(attempt.report, step))


def full_disk(root: Path, stages: int) -> None:
    attempt = new_attempt(root, 0, stages)
    children = [fork(partial(save_twice, attempt, stage)) for stage in range(stages)]
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    with ThreadPoolExecutor(1) as pool:
        manifests = attempt.manifests(pool)
        manifests.start(10)  # these ranks did not wait for it
        for step in (1, 2):
            manifests.expect(step, {"t": step})
        for step, said in attempt.heard():
            sys.stdout.write(f"{step} {said.get('error') or said['name']}\n")
            if "error" not in said:
                manifests.add(step, Shard.from_json(said))
        manifests.close()
        sys.stdout.write(f"written {manifests.written}\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "kill":
        kill_at_random(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        full_disk(Path(sys.argv[2]), int(sys.argv[3]))
