"""A job that fails on one stage, in whatever it does there, harms no other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import make_llama, make_tokenizer
from tests.training.planted import Fault
from tests.training.runs import assert_same_bytes, four_jobs, run, write_rows
from tests.training.stages import Case, Ended, Stages

pytestmark = pytest.mark.multiproc

STEPS = 6
LONGEST = 96  # a job file's must be within the capacity
# How a reason names each phase, and its error.
ERROR = "ZeroDivisionError: planted in {}"
WORDS = {
    "forward": ("the forward of step 3: " + ERROR,),
    "backward": ("the backward of step 3: " + ERROR,),
    "collect": ("the backward of step 3: " + ERROR,),
    "norm": ("the gradient norm of step 3: " + ERROR,),
    "step": ("optimizer step 3: " + ERROR,),
    "rows": ("the forward of step 3: " + ERROR,),
    "eval": ("the forward of step 3: " + ERROR,),
    "save": ("checkpoint", "step-00000003 cannot be written", "No space left"),
    "copy": ("the checkpoint of step 3: " + ERROR,),
    "join": ("planted in join",),
}


@pytest.fixture(scope="module")
def deep_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deep_base")
    make_tokenizer(folder)
    make_llama(folder, layers=4)
    return folder


@pytest.fixture(scope="module")
def stages(deep_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stages]:
    with Stages(tmp_path_factory.mktemp("stages"), deep_base) as running:
        yield running


@pytest.fixture(scope="module")
def neighbours(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    jobs = four_jobs(tmp_path_factory.mktemp("rows"), steps=STEPS)[:3]
    return [{**job, "max_seq_len": LONGEST} for job in jobs]


@pytest.fixture(scope="module")
def alone(
    deep_base: Path, neighbours: Sequence[Mapping[str, Any]], tmp_path_factory
) -> Path:
    """The neighbours by themselves in one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    run(folder, deep_base, neighbours, deterministic=True)
    return folder


def victims(folder: Path, faults: Sequence[Fault]) -> list[dict[str, Any]]:
    """The jobs that the faults are in, alike but for their seeds."""
    rows = write_rows(folder / "victims.jsonl", rows=24, longest=8, seed=9)
    return [
        {
            "name": fault.job,
            "dataset": {"path": rows},
            "adapter": {"r": 2, "lora_dropout": 0.1},
            "global_batch_size": 4,
            "max_steps": STEPS,
            "max_seq_len": LONGEST,
            "save_every": 1,
            "eval": {"val_size": 2, "every": 1},
            "seed": index,
        }
        for index, fault in enumerate(faults)
    ]


def check_victim(ended: Ended, output: Path, fault: Fault) -> None:
    result = ended.jobs[fault.job]
    assert result["state"] == "failed", result
    assert result["adapter_dir"] is None
    assert not (output / fault.job / "adapter").exists()
    if fault.phase == "nan":
        words = ["had no finite loss and gradient"]
    else:
        words = [f"stage {fault.stage}: ", *(w.format(fault.phase) for w in WORDS[fault.phase])]
    for word in words:
        assert word in result["reason"]
    kept = {path.parent.name for path in (output / fault.job).glob("checkpoints/*/manifest.json")}
    assert not {name for name in kept if name >= f"step-{fault.step:08d}"} or fault.phase == "nan"


def check_neighbours(
    ended: Ended, output: Path, neighbours: Sequence[Mapping[str, Any]], alone: Path
) -> None:
    for job in neighbours:
        assert ended.jobs[job["name"]]["state"] == "succeeded", ended.jobs[job["name"]]
        adapters = [
            (folder / job["name"] / "adapter" / "adapter_model.safetensors").read_bytes()
            for folder in (output, alone)
        ]
        assert adapters[0] == adapters[1]
        assert_same_bytes(output / job["name"], alone / job["name"])


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("phase", [*WORDS, "nan"])
def test_neighbours_keep_every_bit(
    stages: Stages, neighbours, alone: Path, tmp_path: Path, phase: str, count: int
) -> None:
    """A victim on each stage, all in the same step."""
    # Tokens are read on the first stage, targets on the last.
    where = [0, count - 1] if phase == "rows" else range(1 if phase == "join" else 0, count)
    faults = [Fault(stage, phase, f"victim{stage}", 3) for stage in where]
    jobs = [*neighbours, *victims(tmp_path, faults)]
    ended = stages.run(Case(tmp_path / "out", count, faults), jobs, deterministic=True)
    assert ended.codes == [1] + [0] * (count - 1), ended.err
    for fault in faults:
        check_victim(ended, tmp_path / "out", fault)
    check_neighbours(ended, tmp_path / "out", neighbours, alone)
