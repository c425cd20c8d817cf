"""Checkpoints as one job writes and reads them, whatever the number of stages."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from lorafusion.errors import CheckpointError
from lorafusion.training.checkpoint import at_step, check_fingerprint, clear, newest
from lorafusion.training.manifest import ManifestWriter
from lorafusion.training.shard_writer import ShardWriter
from tests.training.saving import FINGERPRINT, Saver, steps_on_disk, tensors


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(max_workers=1) as pool:
        yield pool


@pytest.mark.parametrize("stages", [1, 3])
def test_what_was_saved_comes_back_bit_for_bit(
    tmp_path: Path, executor: ThreadPoolExecutor, stages: int
):
    given = {
        "float64": torch.randn(3, 4, dtype=torch.float64),
        "float32": torch.tensor([0.1, float("nan"), -0.0, float("inf")]),
        "transposed": torch.randn(4, 6).T,
        "view": torch.randn(4, 6)[1:3],
        "scalar": torch.tensor(7, dtype=torch.int64),
    }
    state = {"loss": 0.1 + 0.2, "tiny": 5e-324, "nested": {"list": [1, None, "é"]}}
    saver = Saver(tmp_path / "deep" / "root", executor, stages=stages)
    saver.save(3, given, **state)
    saver.close()

    found = newest(tmp_path / "deep" / "root")

    assert found is not None
    assert (found.step, found.state, found.fingerprint) == (3, {"t": 3, **state}, FINGERPRINT)
    back = found.tensors()
    assert back.keys() == given.keys()
    for name, tensor in given.items():
        assert back[name].dtype == tensor.dtype
        assert back[name].shape == tensor.shape
        assert back[name].numpy().tobytes() == tensor.contiguous().numpy().tobytes()
    shards = [f"stage-{stage}.safetensors" for stage in range(stages)]
    assert sorted(p.name for p in found.folder.iterdir()) == ["manifest.json", *shards]
    assert saver.manifests.newest() == at_step(tmp_path / "deep" / "root", 3) == found


def test_save_takes_everything_by_value(tmp_path: Path):
    """Whatever the caller changes after the calls returned does not reach the disk."""
    start = threading.Event()
    with ThreadPoolExecutor(max_workers=1) as pool:
        pool.submit(start.wait, 5)
        shards = ShardWriter(tmp_path, pool, "a")
        weight, state = torch.zeros(4), {"seen": [1]}
        fingerprint: dict[str, Any] = {"seed": 1}
        manifests = ManifestWriter(tmp_path, pool, ["a"], fingerprint)
        manifests.start(0)
        manifests.expect(1, state)
        future = shards.save(1, {"w": weight})
        weight += 1
        state["seen"].append(2)
        fingerprint["seed"] = 2
        start.set()
        manifests.add(1, future.result())
        manifests.close()
    found = newest(tmp_path)
    assert found is not None
    assert torch.equal(found.tensors()["w"], torch.zeros(4))
    assert found.state == {"seen": [1]}
    assert found.fingerprint == {"seed": 1}


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept(tmp_path: Path, executor: ThreadPoolExecutor, keep: int):
    saver = Saver(tmp_path, executor, stages=2, keep=keep)
    for step in range(1, 6):
        saver.save(step)
    saver.close()
    assert steps_on_disk(tmp_path) == list(range(6 - keep, 6))


def test_many_jobs_share_an_executor(tmp_path: Path):
    with ThreadPoolExecutor(max_workers=4) as pool:
        savers = [Saver(tmp_path / str(j), pool, stages=2, keep=1) for j in range(6)]
        for step in range(1, 9):
            for saver in savers:
                saver.save(step)
        for saver in savers:
            saver.close()
    for job in range(6):
        assert steps_on_disk(tmp_path / str(job)) == [8]
        assert at_step(tmp_path / str(job), 8).state == {"t": 8}


def test_a_slow_disk_holds_the_caller_back(tmp_path: Path):
    start = threading.Event()
    with ThreadPoolExecutor(max_workers=1) as pool:
        pool.submit(start.wait, 5)
        saver = Saver(tmp_path, pool)
        saver.save(1)
        saver.save(2)
        third = threading.Thread(target=saver.save, args=(3,))
        third.start()
        third.join(0.2)
        assert third.is_alive()
        start.set()
        third.join(10)
        assert not third.is_alive()
        saver.close()
    assert steps_on_disk(tmp_path) == [2, 3]


def flip_byte(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def edit_state(path: Path) -> None:
    manifest = json.loads(path.read_text())
    manifest["state"]["t"] = 99
    path.write_text(json.dumps(manifest))


# What is done to the checkpoint, the shard that is damaged, and what the report must name.
DAMAGE = {
    "a flipped bit in the shard": (lambda f, shard: flip_byte(f / shard, -5), "shard"),
    "a shortened shard": (lambda f, shard: os.truncate(f / shard, 40), "shard"),
    "no shard": (lambda f, shard: (f / shard).unlink(), "shard"),
    "no manifest": (lambda f, _: (f / "manifest.json").unlink(), "manifest"),
    "a shortened manifest": (lambda f, _: os.truncate(f / "manifest.json", 60), "manifest"),
    "an empty manifest": (lambda f, _: os.truncate(f / "manifest.json", 0), "manifest"),
    "a manifest of another kind": (
        lambda f, _: (f / "manifest.json").write_text("[1]"),
        "manifest",
    ),
    "an edited manifest": (lambda f, _: edit_state(f / "manifest.json"), "manifest"),
}


@pytest.mark.parametrize(("stages", "stage"), [(1, 0), (3, 0), (3, 2)])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_reported_and_the_one_before_is_used(
    tmp_path: Path, executor: ThreadPoolExecutor, damage: str, stages: int, stage: int
):
    saver = Saver(tmp_path, executor, stages=stages)
    saver.save(1)
    saver.save(2)
    saver.close()
    shard = f"stage-{stage}.safetensors"
    do_damage, named = DAMAGE[damage]
    do_damage(tmp_path / "step-00000002", shard)

    reports: list[str] = []
    found = newest(tmp_path, report=reports.append)
    assert found is not None
    assert (found.step, found.state) == (1, {"t": 1})
    assert len(reports) == 1
    assert str(tmp_path / "step-00000002") in reports[0]
    assert (shard if named == "shard" else named) in reports[0]
    with pytest.raises(CheckpointError, match="step-00000002 cannot be used"):
        at_step(tmp_path, 2)
    with pytest.raises(CheckpointError, match="step-00000002 cannot be used"):
        saver.manifests.newest()

    saver = Saver(tmp_path, executor, stages=stages, after=1)
    assert steps_on_disk(tmp_path) == [1]
    saver.save(2)  # the resumed run comes past the damaged one again
    saver.close()
    again = newest(tmp_path, report=reports.append)
    assert again is not None
    assert again.step == 2
    assert torch.equal(again.tensors()["layer0"], tensors(2)["layer0"])
    assert len(reports) == 1


def test_where_none_is_sound_the_report_says_that_it_begins_anew(
    tmp_path: Path, executor: ThreadPoolExecutor
):
    saver = Saver(tmp_path, executor)
    saver.save(1)
    saver.save(2)
    saver.close()
    for step in (1, 2):
        flip_byte(tmp_path / f"step-0000000{step}" / "stage-0.safetensors", -5)
    reports: list[str] = []
    assert newest(tmp_path, report=reports.append) is None
    assert [report.split("; ")[-1] for report in reports] == [
        "the one before is taken instead.",
        "there is none before it, and the job begins anew.",
    ]


def test_a_later_leftover_neither_wins_nor_costs_the_new_one(
    tmp_path: Path, executor: ThreadPoolExecutor
):
    """Damaged step 30, resumed from 20, saved at 25: with keep=1, 25 stays and 30 goes."""
    saver = Saver(tmp_path, executor)
    saver.save(20)
    saver.save(30)
    saver.close()
    (tmp_path / "step-00000030" / "stage-0.safetensors").unlink()
    saver = Saver(tmp_path, executor, keep=1, after=20)
    assert saver.manifests.written == 20
    saver.save(25)
    saver.close()
    assert steps_on_disk(tmp_path) == [25]


def test_nothing_there_is_none_and_clear_makes_it_so(tmp_path: Path, executor: ThreadPoolExecutor):
    assert newest(tmp_path / "missing") is None
    saver = Saver(tmp_path, executor)
    saver.save(1)
    saver.save(2)
    saver.close()
    (tmp_path / "step-notes.txt").write_text("not ours")
    clear(tmp_path)
    assert newest(tmp_path) is None
    assert os.listdir(tmp_path) == ["step-notes.txt"]


def test_a_removal_cut_short_leaves_nothing_that_claims_to_be_complete(
    tmp_path: Path, executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
):
    saver = Saver(tmp_path, executor)
    saver.save(1)
    saver.close()

    def killed(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        clear(tmp_path)
    assert os.listdir(tmp_path / "step-00000001") == ["stage-0.safetensors"]


def test_an_unknown_format_stops_instead_of_being_lost(
    tmp_path: Path, executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lorafusion.training.manifest.FORMAT", 2)
    saver = Saver(tmp_path, executor)
    saver.save(1)
    saver.close()
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"format 2.*reads 1"):
        newest(tmp_path)


def test_tensors_are_read_by_name_from_any_number_of_shards(
    tmp_path: Path, executor: ThreadPoolExecutor
):
    """Saved by three stages, read by two, saved by two, read by one: all the same tensors."""
    saver = Saver(tmp_path, executor, stages=3)
    saver.save(1)
    saver.close()
    names = list(tensors(1))
    parts = [at_step(tmp_path, 1).tensors(part) for part in (names[:2], names[2:])]
    assert [list(part) for part in map(sorted, parts)] == [sorted(names[:2]), sorted(names[2:])]

    saver = Saver(tmp_path, executor, stages=2, after=1)
    saver.save(2, parts[0] | parts[1])
    saver.close()
    found = newest(tmp_path)
    assert found is not None
    assert (found.step, len(found.shards)) == (2, 2)
    back = found.tensors()
    assert back.keys() == tensors(1).keys()
    for name, tensor in tensors(1).items():
        assert torch.equal(back[name], tensor)
    assert found.tensors([]) == {}
    with pytest.raises(CheckpointError, match=r"step-00000002 has no tensor b, c\. "):
        found.tensors(["c", "layer1", "b"])
    with pytest.raises(CheckpointError, match="no tensor a, b, c and 2 more"):
        found.tensors("a b c d e".split())


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="Linux counts what is read")
def test_only_the_named_tensors_are_read(tmp_path: Path, executor: ThreadPoolExecutor):
    saver = Saver(tmp_path, executor)
    saver.save(1, {"first": torch.ones(50_000), "second": torch.ones(50_000)})
    saver.close()
    found = at_step(tmp_path, 1)
    before = bytes_read()
    found.tensors(["second"])
    assert bytes_read() - before < 300_000  # of 400 000; what is mapped is not counted


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


def test_what_was_read_outlives_its_file(tmp_path: Path, executor: ThreadPoolExecutor):
    """A file that is mapped into memory must not be cut under the reader's tensors."""
    saver = Saver(tmp_path, executor)
    saver.save(1, {"a": torch.ones(100_000)})
    saver.close()
    found = at_step(tmp_path, 1)
    back = found.tensors()["a"]
    with (found.folder / "stage-0.safetensors").open("r+b") as file:
        file.write(bytes(400_000))
    assert torch.equal(back, torch.ones(100_000))
    with pytest.raises(CheckpointError, match="safetensors cannot be read"):
        found.tensors()


def test_a_checkpoint_of_one_process_is_still_read(tmp_path: Path, executor: ThreadPoolExecutor):
    """Format 1 as versions before the pipeline wrote it: these bytes must not change."""
    saver = Saver(tmp_path, executor)
    saver.save(7, {"w": torch.tensor([1.0, 2.0])})
    saver.close()
    text = (tmp_path / "step-00000007" / "manifest.json").read_text()
    assert json.loads(text) == {
        "format": 1,
        "step": 7,
        "fingerprint": FINGERPRINT,
        "state": {"t": 7},
        "shards": {
            "stage-0.safetensors": {
                "sha256": "a06ccadd01057a4ceb1433dfacf4f1fdee9afa1ad6b953de1ef1337ef938fe8f",
                "bytes": 72,
            }
        },
        "sha256": "e2778667c6ab114b7d820ca27d9c849e63984b7c58dd091ffb8acefae64bba22",
    }


def test_fingerprint_names_every_difference(tmp_path: Path, executor: ThreadPoolExecutor):
    saver = Saver(tmp_path, executor)
    saver.save(1)
    saver.close()
    found = newest(tmp_path)
    assert found is not None
    check_fingerprint(found, {"job": {"betas": (0.9, 0.999), "learning_rate": 2e-4}, "base": "abc"})

    changed = {"base": "abc", "job": {"learning_rate": 3e-4, "betas": [0.9, 0.99]}, "seed": 1}
    with pytest.raises(CheckpointError) as caught:
        check_fingerprint(found, changed)
    message = str(caught.value)
    assert "job.learning_rate: was 0.0002, is 0.0003" in message
    assert "job.betas: was [0.9, 0.999], is [0.9, 0.99]" in message
    assert "seed: was absent, is 1" in message
    assert "base:" not in message
    assert "--overwrite" in message
