from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from lorafusion.errors import CheckpointError
from lorafusion.training import checkpoint
from lorafusion.training.checkpoint import CheckpointWriter, check_fingerprint, clear, newest

FINGERPRINT = {"base": "abc", "job": {"learning_rate": 2e-4, "betas": [0.9, 0.999]}}


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(max_workers=1) as pool:
        yield pool


def tensors(step: int, size: int = 8) -> dict[str, torch.Tensor]:
    return {"a": torch.full((size,), float(step)), "b.moment": torch.full((2, 3), -float(step))}


def save(writer: CheckpointWriter, step: int, **state: Any) -> None:
    writer.save(step, tensors=tensors(step), state={"t": step, **state}, fingerprint=FINGERPRINT)


def steps_on_disk(root: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in root.iterdir())


def test_what_was_saved_comes_back_bit_for_bit(tmp_path: Path, executor: ThreadPoolExecutor):
    given = {
        "float64": torch.randn(3, 4, dtype=torch.float64),
        "float32": torch.tensor([0.1, float("nan"), -0.0, float("inf")]),
        "transposed": torch.randn(4, 6).T,
        "view": torch.randn(4, 6)[1:3],
        "scalar": torch.tensor(7, dtype=torch.int64),
    }
    state = {"loss": 0.1 + 0.2, "tiny": 5e-324, "nested": {"list": [1, None, "é"]}}
    writer = CheckpointWriter(tmp_path / "deep" / "root", executor)
    writer.save(3, tensors=given, state=state, fingerprint=FINGERPRINT)
    writer.close()

    found = newest(tmp_path / "deep" / "root")

    assert found is not None
    assert (found.step, found.state, found.fingerprint) == (3, state, FINGERPRINT)
    back = found.tensors()
    assert back.keys() == given.keys()
    for name, tensor in given.items():
        assert back[name].dtype == tensor.dtype
        assert back[name].shape == tensor.shape
        assert back[name].numpy().tobytes() == tensor.contiguous().numpy().tobytes()
    assert sorted(p.name for p in found.folder.iterdir()) == [
        "manifest.json",
        "stage-0.safetensors",
    ]


def test_save_takes_everything_by_value(tmp_path: Path):
    """Whatever the caller changes after save() returned does not reach the disk."""
    start = threading.Event()
    with ThreadPoolExecutor(max_workers=1) as pool:
        pool.submit(start.wait)
        writer = CheckpointWriter(tmp_path, pool)
        weight, state = torch.zeros(4), {"seen": [1]}
        fingerprint: dict[str, Any] = {"seed": 1}
        writer.save(1, tensors={"w": weight}, state=state, fingerprint=fingerprint)
        weight += 1
        state["seen"].append(2)
        fingerprint["seed"] = 2
        start.set()
        writer.close()
    found = newest(tmp_path)
    assert found is not None
    assert torch.equal(found.tensors()["w"], torch.zeros(4))
    assert found.state == {"seen": [1]}
    assert found.fingerprint == {"seed": 1}


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept(tmp_path: Path, executor: ThreadPoolExecutor, keep: int):
    writer = CheckpointWriter(tmp_path, executor, keep=keep)
    for step in range(1, 6):
        save(writer, step)
    writer.close()
    assert steps_on_disk(tmp_path) == list(range(6 - keep, 6))


def test_many_jobs_share_an_executor_and_each_keeps_its_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write, busy, overlaps = checkpoint._write, set[Path](), list[Path]()

    def slow_write(folder: Path, snapshot: Any) -> None:
        if folder.parent in busy:
            overlaps.append(folder)
        busy.add(folder.parent)
        time.sleep(0.005)
        write(folder, snapshot)
        busy.discard(folder.parent)

    monkeypatch.setattr(checkpoint, "_write", slow_write)
    with ThreadPoolExecutor(max_workers=4) as pool:
        writers = [CheckpointWriter(tmp_path / str(j), pool, keep=1) for j in range(6)]
        for step in range(1, 9):
            for writer in writers:
                save(writer, step)
        for writer in writers:
            writer.close()
    for job in range(6):
        assert steps_on_disk(tmp_path / str(job)) == [8]
    assert not overlaps


def test_a_slow_disk_holds_the_caller_back(tmp_path: Path):
    start = threading.Event()
    with ThreadPoolExecutor(max_workers=1) as pool:
        pool.submit(start.wait)
        writer = CheckpointWriter(tmp_path, pool)
        save(writer, 1)
        save(writer, 2)
        third = threading.Thread(target=save, args=(writer, 3))
        third.start()
        third.join(0.2)
        assert third.is_alive()
        start.set()
        third.join(10)
        assert not third.is_alive()
        writer.close()
    assert steps_on_disk(tmp_path) == [2, 3]


def flip_byte(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def edit_state(path: Path) -> None:
    manifest = json.loads(path.read_text())
    manifest["state"]["t"] = 99
    path.write_text(json.dumps(manifest))


DAMAGE = {
    "a flipped bit in the shard": lambda f: flip_byte(f / "stage-0.safetensors", -5),
    "a shortened shard": lambda f: os.truncate(f / "stage-0.safetensors", 40),
    "no shard": lambda f: (f / "stage-0.safetensors").unlink(),
    "no manifest": lambda f: (f / "manifest.json").unlink(),
    "a shortened manifest": lambda f: os.truncate(f / "manifest.json", 60),
    "an empty manifest": lambda f: os.truncate(f / "manifest.json", 0),
    "a manifest of another kind": lambda f: (f / "manifest.json").write_text("[1]"),
    "an edited manifest": lambda f: edit_state(f / "manifest.json"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_reported_and_the_one_before_is_used(
    tmp_path: Path, executor: ThreadPoolExecutor, damage: str
):
    writer = CheckpointWriter(tmp_path, executor)
    save(writer, 1)
    save(writer, 2)
    writer.flush()
    DAMAGE[damage](tmp_path / "step-00000002")

    reports: list[str] = []
    found = newest(tmp_path, report=reports.append)
    assert found is not None
    assert (found.step, found.state) == (1, {"t": 1})
    assert len(reports) == 1
    assert str(tmp_path / "step-00000002") in reports[0]

    save(writer, 2)  # the resumed run comes past the damaged one again
    writer.close()
    again = newest(tmp_path, report=reports.append)
    assert again is not None
    assert again.step == 2
    assert torch.equal(again.tensors()["a"], tensors(2)["a"])
    assert len(reports) == 1


def test_a_later_leftover_neither_wins_nor_costs_the_new_one(
    tmp_path: Path, executor: ThreadPoolExecutor
):
    """Damaged step 30, resumed from 20, saved at 25: with keep=1, 25 stays and 30 goes."""
    writer = CheckpointWriter(tmp_path, executor)
    save(writer, 20)
    save(writer, 30)
    writer.close()
    (tmp_path / "step-00000030" / "stage-0.safetensors").unlink()
    writer = CheckpointWriter(tmp_path, executor, keep=1)
    save(writer, 25)
    writer.close()
    assert steps_on_disk(tmp_path) == [25]


def test_nothing_there_is_none_and_clear_makes_it_so(tmp_path: Path, executor: ThreadPoolExecutor):
    assert newest(tmp_path / "missing") is None
    writer = CheckpointWriter(tmp_path, executor)
    save(writer, 1)
    save(writer, 2)
    writer.close()
    (tmp_path / "step-notes.txt").write_text("not ours")
    clear(tmp_path)
    assert newest(tmp_path) is None
    assert os.listdir(tmp_path) == ["step-notes.txt"]


def test_a_removal_cut_short_leaves_nothing_that_claims_to_be_complete(
    tmp_path: Path, executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
):
    writer = CheckpointWriter(tmp_path, executor)
    save(writer, 1)
    writer.close()

    def killed(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        clear(tmp_path)
    assert os.listdir(tmp_path / "step-00000001") == ["stage-0.safetensors"]


def test_an_unknown_format_stops_instead_of_being_lost(
    tmp_path: Path, executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lorafusion.training.checkpoint.FORMAT", 2)
    writer = CheckpointWriter(tmp_path, executor)
    save(writer, 1)
    writer.close()
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"format 2.*reads 1"):
        newest(tmp_path)


def test_an_error_reaches_its_own_job_once(tmp_path: Path, executor: ThreadPoolExecutor):
    (tmp_path / "blocked").write_text("a file stands where the folder should be")
    bad = CheckpointWriter(tmp_path / "blocked", executor)
    good = CheckpointWriter(tmp_path / "good", executor)
    save(bad, 1)
    save(good, 1)
    good.close()
    with pytest.raises(CheckpointError, match="blocked/step-00000001"):
        bad.flush()
    bad.close()
    assert newest(tmp_path / "good") is not None

    save(bad, 2)
    executor.submit(int).result()  # the write before it has failed by now
    with pytest.raises(CheckpointError, match="blocked/step-00000002"):
        save(bad, 3)


FULL_DISK = """
import resource, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import torch
from lorafusion.errors import CheckpointError
from lorafusion.training.checkpoint import CheckpointWriter
root = Path(sys.argv[1])
with ThreadPoolExecutor(1) as pool:
    writer = CheckpointWriter(root, pool)
    for step, size in ((1, 10), (2, 100_000)):
        if step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        writer.save(step, tensors={"a": torch.ones(size)}, state={}, fingerprint={})
    try:
        writer.close()
    except CheckpointError as error:
        sys.stderr.write(str(error))
        sys.exit(7)
"""


def run_child(code: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, env=environment, text=True, **options)


def test_a_full_disk_leaves_no_half_checkpoint(tmp_path: Path):
    child = run_child(FULL_DISK, str(tmp_path), stderr=subprocess.PIPE)
    _, message = child.communicate(timeout=60)
    assert child.returncode == 7, message
    assert str(tmp_path / "step-00000002") in message
    assert "File too large" in message
    assert steps_on_disk(tmp_path) == [1]
    found = newest(tmp_path)
    assert found is not None
    assert found.step == 1


# Torch is imported once and the processes to kill are forked off: an import takes seconds.
KILL_AT_RANDOM = """
import os, random, signal, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import torch
from lorafusion.training.checkpoint import CheckpointWriter, newest

def save_forever(root, pipe):
    found = newest(root, report=lambda _: None)
    step = found.step if found else 0
    os.write(pipe, b"%d\\n" % step)
    with ThreadPoolExecutor(1) as pool:
        writer = CheckpointWriter(root, pool, keep=2)
        while True:
            step += 1
            tensors = {"a": torch.full((50_000,), float(step)), "b": torch.full((3,), -float(step))}
            writer.save(step, tensors=tensors, state={"t": step}, fingerprint={"seed": 1})
            if step % 3 == 0:
                writer.flush()
                os.write(pipe, b"%d\\n" % step)

delays = random.Random(0)
for _ in sys.stdin:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        save_forever(Path(sys.argv[1]), writer)
    os.close(writer)
    with os.fdopen(reader) as lines:
        resumed = lines.readline().strip()
        time.sleep(delays.uniform(0, 0.3))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        flushed = [line.strip() for line in lines]
    print(resumed, (flushed or [resumed])[-1], flush=True)
"""


def test_killed_at_any_instant_the_newest_is_complete(tmp_path: Path):
    """Twenty processes in turn resume, save and are killed: none finds less than was flushed."""
    root = tmp_path / "root"
    killer = run_child(KILL_AT_RANDOM, str(root), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert killer.stdin is not None
    assert killer.stdout is not None
    last, incomplete = 0, list[str]()
    for _ in range(20):
        killer.stdin.write("again\n")
        killer.stdin.flush()
        resumed, flushed = (int(word) for word in killer.stdout.readline().split())
        found = newest(root, report=incomplete.append)
        assert resumed == last
        last = found.step if found else 0
        assert last >= flushed
        if found is not None:
            assert found.state == {"t": last}
            back = found.tensors()
            assert torch.equal(back["a"], torch.full((50_000,), float(last)))
            assert torch.equal(back["b"], torch.full((3,), -float(last)))
    killer.stdin.close()
    assert killer.wait(timeout=60) == 0
    assert last > 3
    assert incomplete, "no kill fell into a write: the test has proved nothing"


def test_fingerprint_names_every_difference(tmp_path: Path, executor: ThreadPoolExecutor):
    writer = CheckpointWriter(tmp_path, executor)
    save(writer, 1)
    writer.close()
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
