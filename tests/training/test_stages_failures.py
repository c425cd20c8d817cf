"""A job that fails on one stage, in whatever it does there, harms no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from lorafusion.training import folders
from tests.training.planted import Fault
from tests.training.runs import (
    assert_same_bytes,
    four_jobs,
    loss_difference,
    losses,
    run,
    write_rows,
)
from tests.training.stages import LONGEST, Case, Ended, Stages

pytestmark = pytest.mark.multiproc

Jobs = Sequence[Mapping[str, Any]]
STEPS = 4
BAD = 3  # the step that fails
ERROR = "ZeroDivisionError: planted in {}"
# How a reason names each phase, and its error.
COMPUTING = {
    "forward": ("the forward of step 3: " + ERROR,),
    "rows": ("the forward of step 3: " + ERROR,),
    "eval": ("the eval after step 3: " + ERROR,),
    "backward": ("the backward of step 3: " + ERROR,),
    "collect": ("the backward of step 3: " + ERROR,),
    "nan": ("1 steps in a row up to step 3 had no finite loss and gradient",),
}
STEPPING = {
    "join": ("planted in join",),
    "norm": ("the gradient norm of step 3: " + ERROR,),
    "step": ("optimizer step 3: " + ERROR,),
    "copy": ("the checkpoint of step 3: " + ERROR,),
    "save": ("step-00000003 cannot be written", "No space left"),
}
WORDS = {**COMPUTING, **STEPPING}


@pytest.fixture(scope="module")
def neighbours(tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    jobs = four_jobs(tmp_path_factory.mktemp("rows"), steps=STEPS)
    return [{**job, "max_seq_len": LONGEST} for job in jobs[:3]]


@pytest.fixture(scope="module")
def alone(deep_base: Path, neighbours: Jobs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The neighbours by themselves in one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    run(folder, deep_base, neighbours, deterministic=True)
    return folder


def faults_of(phases: Sequence[str], stages: int) -> list[Fault]:
    """One on each stage where a phase can fail, all in the same step."""
    faults: list[Fault] = []
    for phase in phases:
        # Tokens are read on the first stage, targets on the last; rank 0 has jobs before others.
        where = {"rows": (0, stages - 1), "join": range(1, stages)}.get(phase, range(stages))
        faults += [Fault(stage, phase, f"{phase}-{stage}", BAD) for stage in where]
    return faults


def victims(folder: Path, faults: Sequence[Fault]) -> list[dict[str, Any]]:
    """The jobs that the faults are in, alike but for their seeds."""
    rows = write_rows(folder / "victims.jsonl", rows=9, longest=8, seed=9)
    return [
        {
            "name": fault.job,
            "dataset": {"path": rows},
            "adapter": {"r": 2, "lora_dropout": 0.1},
            "global_batch_size": 2,
            "max_steps": STEPS,
            "max_seq_len": LONGEST,
            "save_every": 1,
            "max_bad_steps": 1,
            "eval": {"val_size": 1, "every": 1} if fault.phase == "eval" else {},
            "seed": index,
        }
        for index, fault in enumerate(faults)
    ]


def wrong_with(ended: Ended, output: Path, fault: Fault) -> list[str]:
    """What is not as it should be with the job that failed."""
    result = ended.jobs[fault.job]
    words = [word.format(fault.phase) for word in WORDS[fault.phase]]
    if fault.phase != "nan":  # is seen by the loss
        words.append(f"stage {fault.stage}: ")
    wrong = [f"reason {result['reason']!r}, not {word!r}" for word in words]
    wrong = [line for line, word in zip(wrong, words, strict=True) if word not in result["reason"]]
    if result["state"] != "failed" or result["adapter_dir"] is not None:
        wrong.append(f"is {result['state']}")
    if (output / fault.job / "adapter").exists():
        wrong.append("was exported")
    manifests = (output / fault.job).glob("checkpoints/*/manifest.json")
    # An eval fails after its step, which counts.
    if fault.phase != "eval" and any(m.parent.name >= f"step-{BAD:08d}" for m in manifests):
        wrong.append("has a checkpoint of the failed step")
    return [f"{fault.job}: {line}" for line in wrong]


def check_ends(ended: Ended, output: Path, faults: Sequence[Fault], neighbours: Jobs) -> None:
    assert ended.codes == [1] + [0] * (len(ended.codes) - 1), ended.err
    assert not [line for fault in faults for line in wrong_with(ended, output, fault)]
    for job in neighbours:
        assert ended.jobs[job["name"]]["state"] == "succeeded", ended.jobs[job["name"]]


@pytest.mark.parametrize("count", [pytest.param(2, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize("phases", [COMPUTING, STEPPING], ids=["computing", "stepping"])
def test_neighbours_keep_every_bit(
    stages: Stages, neighbours: Jobs, alone: Path, tmp_path: Path, phases: Any, count: int
) -> None:
    faults, output = faults_of([*phases], count), tmp_path / "out"
    jobs = [*neighbours, *victims(tmp_path, faults)]
    ended = stages.run(Case(output, count, faults), jobs, deterministic=True)
    check_ends(ended, output, faults, neighbours)
    for name in [job["name"] for job in neighbours]:
        adapters = [
            (folder / name / "adapter" / "adapter_model.safetensors").read_bytes()
            for folder in (output, alone)
        ]
        assert adapters[0] == adapters[1]
        assert_same_bytes(output / name, alone / name)


def test_neighbours_in_the_same_microbatches(
    stages: Stages, neighbours: Jobs, alone: Path, tmp_path: Path
) -> None:
    """Where a whole place runs at once, and so fails at once."""
    faults, output = faults_of([*WORDS], 3), tmp_path / "out"
    jobs = [*neighbours, *victims(tmp_path, faults)]
    ended = stages.run(Case(output, 3, faults), jobs)
    check_ends(ended, output, faults, neighbours)
    for name in [job["name"] for job in neighbours]:
        assert loss_difference(losses(output / name), losses(alone / name)) < 1e-4


@pytest.mark.parametrize("phase", ["forward", "step", "save"])
def test_nothing_is_left_to_train(stages: Stages, tmp_path: Path, phase: str) -> None:
    """The only job fails in its last step, on the last stage: the run ends all the same."""
    fault = Fault(1, phase, f"{phase}-1", BAD)
    jobs = [{**job, "max_steps": BAD} for job in victims(tmp_path, [fault])]
    ended = stages.run(Case(tmp_path / "out", 2, [fault]), jobs, deterministic=True)
    check_ends(ended, tmp_path / "out", [fault], [])


def test_a_folder_in_use(stages: Stages, neighbours: Jobs, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with folders.claim_folder(output):
        ended = stages.run(Case(output, 2), neighbours)
    assert ended.codes == [2, 2], ended.err
    assert str(output) in ended.err.replace("\n", "")
    assert "Traceback" not in ended.err


def test_results_that_are_there(stages: Stages, neighbours: Jobs, tmp_path: Path) -> None:
    output = tmp_path / "out"
    folder = output / neighbours[0]["name"]
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("{}\n")
    ended = stages.run(Case(output, 2), neighbours)
    assert ended.codes == [2, 2], ended.err
    assert "--overwrite" in ended.err
    assert "Traceback" not in ended.err


def test_a_base_whose_weights_are_cut_short(
    stages: Stages, neighbours: Jobs, deep_base: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for file in deep_base.iterdir():
        data = file.read_bytes()
        (base / file.name).write_bytes(data[:1000] if file.suffix == ".safetensors" else data)
    ended = stages.run(Case(tmp_path / "out", 2), neighbours, base_model=str(base))
    assert ended.codes == [2, 2], ended.err
    assert str(base) in ended.err.replace("\n", "")
    assert "Traceback" not in ended.err


def test_more_stages_than_layers(stages: Stages, neighbours: Jobs, tmp_path: Path) -> None:
    ended = stages.run(Case(tmp_path / "out", 5), neighbours)
    assert ended.codes == [2] * 5, ended.err
    assert "5 stages for 4 layers; allowed: 1 to 4" in ended.err
