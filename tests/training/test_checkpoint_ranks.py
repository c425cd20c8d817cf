"""Several ranks write the shards of the same checkpoints, each at its own pace."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest
import torch

from lorafusion.errors import CheckpointError
from lorafusion.training.checkpoint import MANIFEST, at_step, newest
from lorafusion.training.manifest import ManifestWriter
from lorafusion.training.shard_writer import ShardWriter, shard_name
from tests.training.saving import Saver, steps_on_disk, tensors
from tests.training.saving_ranks import NAMES, SIZE, value

PROGRAM = Path(__file__).with_name("saving_ranks.py")
ROUNDS = 40


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(max_workers=1) as pool:
        yield pool


def save_alone(saver: Saver, stage: int, step: int) -> None:
    """One rank's shard is on the disk; rank 0 has not heard of it."""
    saver.ranks[stage].save(step, {f"of {stage}": torch.full((3,), float(step))}).result()


def test_a_checkpoint_counts_with_its_last_shard(tmp_path: Path, executor: ThreadPoolExecutor):
    saver = Saver(tmp_path, executor, stages=3)
    manifests = saver.manifests
    manifests.expect(1, {})
    for stage in (2, 0):
        manifests.add(1, saver.ranks[stage].save(1, {"a": torch.ones(2)}).result())
    manifests.close()
    assert manifests.written is None
    assert newest(tmp_path, report=lambda _: None) is None
    manifests.add(1, saver.ranks[1].save(1, {"b": torch.ones(2)}).result())
    manifests.close()
    assert manifests.written == 1
    assert at_step(tmp_path, 1).tensors().keys() == {"a", "b"}


def test_shards_may_be_there_before_rank_0_expects_them(
    tmp_path: Path, executor: ThreadPoolExecutor
):
    """The last stages do a step before rank 0 has heard what it brought, and run ahead."""
    saver = Saver(tmp_path, executor, stages=2)
    for step in (1, 2):
        for rank in saver.ranks:
            saver.manifests.add(step, rank.save(step, {"a": torch.full((1,), step)}).result())
    saver.manifests.close()
    assert saver.manifests.written is None
    saver.manifests.expect(1, {"of": 1})
    saver.manifests.close()
    assert (saver.manifests.written, saver.manifests.newest().state) == (1, {"of": 1})
    saver.manifests.expect(2, {"of": 2})
    saver.manifests.close()
    assert (saver.manifests.written, saver.manifests.newest().state) == (2, {"of": 2})


def test_asking_what_is_written_does_not_wait(tmp_path: Path, executor: ThreadPoolExecutor):
    saver = Saver(tmp_path, executor)
    saver.save(1)
    saver.close()
    saver.save(2)
    executor.submit(int).result()  # the shard is written by now
    gate = threading.Event()
    executor.submit(gate.wait, 5)
    saver.deliver()
    assert saver.manifests.written == 1
    gate.set()
    saver.close()
    assert saver.manifests.written == 2


def test_nothing_of_a_dropped_job_counts(tmp_path: Path, executor: ThreadPoolExecutor):
    saver = Saver(tmp_path, executor, stages=2)
    saver.save(1)
    saver.close()
    saver.save(2)
    saver.manifests.drop()
    saver.deliver()
    saver.save(3)
    saver.close()
    assert saver.manifests.written == 1
    found = newest(tmp_path, report=lambda _: None)
    assert found is not None
    assert found.step == 1
    again = Saver(tmp_path, executor, stages=2, after=1)
    assert steps_on_disk(tmp_path) == [1]
    again.save(2)
    again.close()
    assert steps_on_disk(tmp_path) == [1, 2]


def test_a_manifest_that_waits_for_the_disk_is_dropped(
    tmp_path: Path, executor: ThreadPoolExecutor
):
    saver = Saver(tmp_path, executor)
    saver.save(1)
    executor.submit(int).result()  # the shard is written by now
    gate = threading.Event()
    executor.submit(gate.wait, 5)
    saver.deliver()
    saver.manifests.drop()
    gate.set()
    saver.close()
    executor.submit(int).result()
    assert saver.manifests.written is None
    assert os.listdir(tmp_path / "step-00000001") == [shard_name(0)]


def test_pruning_leaves_what_other_ranks_are_writing(tmp_path: Path, executor: ThreadPoolExecutor):
    """Rank 1 is two steps ahead when step 3 begins to count."""
    saver = Saver(tmp_path, executor, stages=2, keep=1)
    saver.save(1)
    saver.save(3)
    for step in (4, 5):
        save_alone(saver, 1, step)
    (tmp_path / "step-00000002").mkdir()  # an earlier one that was never completed
    saver.close()
    assert steps_on_disk(tmp_path) == [3, 4, 5]
    for step in (4, 5):
        assert os.listdir(tmp_path / f"step-{step:08d}") == [shard_name(1)]


def test_what_an_earlier_attempt_left_does_not_count_again(
    tmp_path: Path, executor: ThreadPoolExecutor
):
    """A complete step 2 lost a shard; the next attempt must not complete it by half."""
    saver = Saver(tmp_path, executor, stages=3)
    for step in (1, 2, 3):
        saver.save(step)
    saver.close()
    (tmp_path / "step-00000003" / shard_name(1)).unlink()
    manifest = (tmp_path / "step-00000003" / MANIFEST).read_text()

    again = Saver(tmp_path, executor, stages=2, after=2)
    assert not (tmp_path / "step-00000003").exists()
    again.save(3, {"a": torch.ones(1), "b": torch.ones(1)})
    again.deliver()
    again.manifests.close()
    found = newest(tmp_path)
    assert found is not None
    assert found.tensors().keys() == {"a", "b"}
    assert (found.folder / MANIFEST).read_text() != manifest
    assert sorted(os.listdir(found.folder)) == [MANIFEST, shard_name(0), shard_name(1)]


def test_saving_before_the_start_is_refused(tmp_path: Path, executor: ThreadPoolExecutor):
    with pytest.raises(AssertionError, match="an earlier attempt"):
        ManifestWriter(tmp_path, executor, ["a"], {}).expect(1, {})


def test_an_error_is_told_once_and_to_its_own_job(tmp_path: Path, executor: ThreadPoolExecutor):
    (tmp_path / "blocked").write_text("a file stands where the folder should be")
    bad = Saver(tmp_path / "blocked", executor)
    good = Saver(tmp_path / "good", executor)
    bad.save(1)
    good.save(1)
    good.close()
    with pytest.raises(CheckpointError, match="blocked/step-00000001 cannot be written"):
        bad.deliver()
    bad.close()
    assert newest(tmp_path / "good") is not None


def test_one_rank_that_cannot_write_spoils_no_other(tmp_path: Path, executor: ThreadPoolExecutor):
    """A folder stands where rank 1's shard should be."""
    saver = Saver(tmp_path, executor, stages=3)
    saver.save(1)
    saver.close()
    (tmp_path / "step-00000002" / shard_name(1)).mkdir(parents=True)
    writes = [rank.save(2, {"a": torch.ones(1)}) for rank in saver.ranks]
    wait(writes)
    assert [write.exception() is None for write in writes] == [True, False, True]
    with pytest.raises(CheckpointError, match=r"step-00000002 cannot be written.*then resume"):
        writes[1].result()
    names = {path.name for path in (tmp_path / "step-00000002").iterdir()}
    assert names == {shard_name(stage) for stage in range(3)}
    found = newest(tmp_path, report=lambda _: None)
    assert found is not None
    assert found.step == 1
    # The place is mended, and the next run writes the same step.
    again = Saver(tmp_path, executor, stages=3, after=1)
    again.save(2)
    again.close()
    assert again.manifests.newest().tensors().keys() == tensors(2).keys()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="Linux says which file is synced")
def test_a_manifest_is_renamed_into_place_when_all_else_is_on_the_disk(
    tmp_path: Path, executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
):
    """No kill shows this, only a power failure: the order of the calls is watched."""
    calls: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        calls.append(("sync", "file" if path.is_file() else path.name))
        fsync(descriptor)

    def watched_replace(source: Path, target: Path) -> None:
        calls.append(("rename", target.name))
        replace(source, target)

    root = tmp_path / "root"
    saver = Saver(root, executor, stages=2)
    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    saver.save(1)
    saver.close()
    above = [("sync", "step-00000001"), ("sync", "root"), ("sync", tmp_path.name)]
    assert calls == [
        *(("sync", "file"), ("rename", shard_name(0)), *above),
        *(("sync", "file"), ("rename", shard_name(1)), *above),
        *(("sync", "file"), ("rename", MANIFEST), above[0]),
    ]


@pytest.mark.parametrize("how", ["expect", "written", "close"])
def test_a_manifest_that_cannot_be_written_is_told_once(
    tmp_path: Path, executor: ThreadPoolExecutor, how: str
):
    saver = Saver(tmp_path, executor, stages=2)
    manifests = saver.manifests
    (tmp_path / "step-00000001" / MANIFEST / "in the way").mkdir(parents=True)
    saver.save(1)
    saver.deliver()
    executor.submit(int).result()  # it has failed by now
    with pytest.raises(CheckpointError, match="step-00000001 cannot be written"):
        {
            "expect": lambda: manifests.expect(2, {}),
            "written": lambda: manifests.written,
            "close": manifests.close,
        }[how]()
    manifests.close()
    assert manifests.written is None
    assert newest(tmp_path, report=lambda _: None) is None


def test_a_shard_that_rank_0_does_not_see(tmp_path: Path, executor: ThreadPoolExecutor):
    """Each node has a folder of its own: told at the first checkpoint, not at the resume."""
    here, there = tmp_path / "here", tmp_path / "there"
    names = [shard_name(0), shard_name(1)]
    manifests = ManifestWriter(here, executor, names, {})
    manifests.start(0)
    manifests.expect(1, {})
    for root, name in zip((here, there), names, strict=True):
        manifests.add(1, ShardWriter(root, executor, name).save(1, {"a": torch.ones(1)}).result())
    with pytest.raises(CheckpointError, match=r"stage-1.* does not see it.*all nodes share"):
        manifests.close()
    assert newest(here, report=lambda _: None) is None


def run_ranks(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    command = [sys.executable, str(PROGRAM), *arguments]
    return subprocess.Popen(command, env=environment, text=True, **options)


@pytest.mark.multiproc
@pytest.mark.parametrize("stages", [1, 3])
def test_a_full_disk_of_one_rank_leaves_the_checkpoint_before(
    tmp_path: Path, executor: ThreadPoolExecutor, stages: int
):
    root = tmp_path / "root"
    child = run_ranks("full", str(root), str(stages), stdout=subprocess.PIPE)
    heard, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    errors = [line for line in heard.splitlines() if "File too large" in line]
    assert len(errors) == 1
    assert f"2 checkpoint {root / 'step-00000002'} cannot be written" in errors[0]
    assert heard.splitlines()[-1] == "written 1"
    left = {path.name for path in (root / "step-00000002").glob("*")}
    assert left == {shard_name(stage) for stage in range(stages - 1)}
    assert steps_on_disk(root) == ([1, 2] if left else [1])
    reports: list[str] = []
    found = newest(root, report=reports.append)
    assert found is not None
    assert (found.step, len(reports)) == (1, len(steps_on_disk(root)) - 1)
    Saver(root, executor, after=1)
    assert steps_on_disk(root) == [1]


@pytest.mark.multiproc
def test_killed_at_any_instant_the_newest_is_complete(tmp_path: Path):
    """Teams of one to three processes in turn resume, save and are killed."""
    root = tmp_path / "root"
    killer = run_ranks("kill", str(root), "0", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert killer.stdin is not None
    assert killer.stdout is not None
    stages, last = random.Random(1), 0
    wrote: dict[int, tuple[int, int]] = {}
    incomplete: list[str] = []
    # On a busy machine few steps are saved before a kill: there are more rounds then.
    for attempt in range(10 * ROUNDS):
        if attempt >= ROUNDS and last > ROUNDS and len(incomplete) > ROUNDS / 4:
            break
        team = stages.choice([1, 2, 3, 3])
        killer.stdin.write(f"{attempt} {team}\n")
        killer.stdin.flush()
        resumed, written = (int(word) for word in killer.stdout.readline().split())
        assert resumed == last
        found = newest(root, report=incomplete.append)
        last = found.step if found else 0
        assert last >= written >= resumed
        wrote |= dict.fromkeys(range(resumed + 1, last + 1), (attempt, team))
        check_all(root, wrote)
    killer.stdin.close()
    assert killer.wait(timeout=60) == 0
    assert last > ROUNDS
    assert len({team for _, team in wrote.values()}) == 3
    assert len(incomplete) > ROUNDS / 4, "few kills fell into a write: the test has proved little"


def check_all(root: Path, wrote: dict[int, tuple[int, int]]) -> None:
    """Whatever claims to be complete is, and is of one attempt."""
    for step in steps_on_disk(root) if root.exists() else []:
        if not (root / f"step-{step:08d}" / MANIFEST).exists():
            continue
        found, (attempt, team) = at_step(root, step), wrote[step]
        assert found.state == {"t": step, "attempt": attempt}
        assert found.shards == tuple(map(shard_name, range(team)))
        assert sorted(os.listdir(found.folder)) == sorted([MANIFEST, *found.shards])
        back = found.tensors(NAMES)
        for index, name in enumerate(NAMES):
            assert torch.equal(back[name], torch.full((SIZE,), value(step, attempt, index)))
