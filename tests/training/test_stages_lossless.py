"""A job's losses and weights do not depend on how many stages it is trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from lorafusion.jobs.loading import load_run_file
from tests.conftest import make_llama, make_tokenizer
from tests.models.families import FAMILIES
from tests.models.measure import jobs_of
from tests.training import runs
from tests.training.stages import ROOT, Case, Stages

pytestmark = pytest.mark.multiproc

Jobs = list[dict[str, Any]]
# A job file's samples must fit the capacity, which is small so that steps take several places.
LONGEST = 96


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Name -> folder: a Llama of four layers with a head of its own or tied, or a family."""
    folders: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            make_tokenizer(folders[name])
            if name in FAMILIES:
                FAMILIES[name].write(folders[name])
            else:
                make_llama(folders[name], tied=name == "tied", layers=4)
        return folders[name]

    return folder


@pytest.fixture(scope="module")
def stages(
    bases: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stages]:
    with Stages(tmp_path_factory.mktemp("stages"), bases("tied")) as running:
        yield running


@pytest.fixture(scope="module")
def alone(
    bases: Callable[[str], Path], four_jobs: Jobs, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Path]:
    """Base and dtype -> the folder of the run in one process."""
    folders: dict[tuple[str, str], Path] = {}

    def folder(base: str, dtype: str) -> Path:
        if (base, dtype) not in folders:
            folders[base, dtype] = tmp_path_factory.mktemp("alone")
            runs.run(folders[base, dtype], bases(base), four_jobs, dtype=dtype)
        return folders[base, dtype]

    return folder


def train(
    stages: Stages, output: Path, count: int, jobs: Sequence[Mapping[str, Any]], **settings: Any
) -> None:
    ended = stages.run(Case(output, count), jobs, **settings)
    assert ended.codes == [0] * count, ended.err
    assert {job["state"] for job in ended.jobs.values()} == {"succeeded"}


def differences(
    found: Path, expected: Path, base: Path, jobs: Jobs, dtype: str
) -> tuple[float, float]:
    """The worst of all jobs: change of the weights (relative, as one vector), losses."""
    weights = losses = 0.0
    for job in jobs:
        ours, theirs = found / job["name"], expected / job["name"]
        start = runs.initial(base, job, dtype)
        changes = [runs.change(runs.state(folder), start) for folder in (ours, theirs)]
        weights = max(weights, runs.total_difference(*changes))
        losses = max(losses, runs.loss_difference(runs.losses(ours), runs.losses(theirs)))
    return weights, losses


@pytest.mark.parametrize(
    ("base", "count", "recompute"),
    [("tied", 2, False), ("tied", 4, True), ("untied", 2, True), ("untied", 4, False)],
)
def test_float64_on_stages_equals_one_process(
    base: str,
    count: int,
    recompute: bool,
    bases: Callable[[str], Path],
    four_jobs: Jobs,
    alone: Callable[[str, str], Path],
    stages: Stages,
    tmp_path: Path,
) -> None:
    settings = {"dtype": "float64", "base_model": str(bases(base)), "recompute": recompute}
    train(stages, tmp_path, count, four_jobs, **settings)
    expected = alone(base, "float64")
    weights, losses = differences(tmp_path, expected, bases(base), four_jobs, "float64")
    runs.figure(f"{count} stages, {base}, float64: change of weights after 20 steps", weights)
    runs.figure(f"{count} stages, {base}, float64: losses", losses)
    assert weights <= 1e-9
    assert losses <= 1e-9


def test_float32_on_stages_is_near_one_process(
    bases: Callable[[str], Path],
    four_jobs: Jobs,
    alone: Callable[[str, str], Path],
    stages: Stages,
    tmp_path: Path,
) -> None:
    train(stages, tmp_path, 3, four_jobs, dtype="float32")
    expected = alone("tied", "float32")
    weights, losses = differences(tmp_path, expected, bases("tied"), four_jobs, "float32")
    runs.figure("3 stages, float32: change of weights after 20 steps", weights)
    runs.figure("3 stages, float32: losses", losses)
    assert weights <= 1e-3
    assert losses <= 1e-5


def test_deterministic_mode_gives_equal_bytes(
    bases: Callable[[str], Path], four_jobs: Jobs, stages: Stages, tmp_path: Path
) -> None:
    """Alone, with other neighbours, on 2 and 4 stages, recomputed or not."""
    settings: dict[str, Any] = {"dtype": "float32", "deterministic": True}
    short = [{**job, "max_steps": 6 + i} for i, job in enumerate(four_jobs)]
    runs.run(tmp_path / "one", bases("tied"), short, **settings)
    runs.run(tmp_path / "alone", bases("tied"), short[:1], **settings)
    train(stages, tmp_path / "two", 2, short, recompute=True, **settings)
    train(stages, tmp_path / "four", 4, short[1::-1], recompute=False, **settings)
    train(stages, tmp_path / "four more", 4, short[2:], recompute=True, capacity=120, **settings)
    for folder in ("alone", "two", "four", "four more"):
        for job in short:
            if (tmp_path / folder / job["name"]).exists():
                one = tmp_path / "one" / job["name"]
                runs.assert_same_bytes(tmp_path / folder / job["name"], one)


@pytest.mark.parametrize("name", ["gemma3", "gpt2"])
def test_families_on_two_and_three_stages(
    name: str, bases: Callable[[str], Path], stages: Stages, tmp_path: Path
) -> None:
    """Gemma 3 has layers of two types in turns: no cut of three layers keeps whole turns."""
    base = bases(name)
    jobs = [{**job, "max_seq_len": LONGEST} for job in jobs_of(FAMILIES[name], tmp_path)]
    settings = {"dtype": "float64", "base_model": str(base)}
    runs.run(tmp_path / "alone", base, jobs, dtype="float64")
    for count in (2, 3):
        train(stages, tmp_path / str(count), count, jobs, recompute=count == 3, **settings)
        folders = tmp_path / str(count), tmp_path / "alone"
        weights, losses = differences(*folders, base, jobs, "float64")
        runs.figure(f"{name}, {count} stages, float64: change of weights", weights)
        assert weights <= 1e-9
        assert losses <= 1e-9


@pytest.mark.slow
def test_smollm2_trains_the_demos_jobs(smollm2: Path, stages: Stages, tmp_path: Path) -> None:
    """Three steps of each; in float32, so that rounding hides nothing."""
    demo = load_run_file(ROOT / "jobs" / "examples" / "demo.yaml")
    data = smollm2.parents[1] / "data"  # fetched with it; the tests' own home holds none
    jobs = [
        {
            **job.model_dump(mode="json", exclude_unset=True),
            "dataset": {"path": str(data / f"{job.name}.jsonl"), "type": job.dataset.type},
            "eval": {"val_size": 2},
            "global_batch_size": 2,  # with their own the test takes nine minutes
            "max_steps": 3,
        }
        for job in demo.jobs
    ]
    settings: dict[str, Any] = {"capacity": 1024, "threads": 1}
    runs.run(tmp_path / "1", smollm2, jobs, **settings)
    for count in (2, 4):
        case = Case(tmp_path / str(count), count, timeout_s=600)
        ended = stages.run(case, jobs, base_model=str(smollm2), **settings)
        assert ended.codes == [0] * count, ended.err
        folders = tmp_path / str(count), tmp_path / "1"
        weights, losses = differences(*folders, smollm2, jobs, "float32")
        runs.figure(f"SmolLM2, the demo, {count} stages: change of weights after 3 steps", weights)
        runs.figure(f"SmolLM2, the demo, {count} stages: losses", losses)
        assert weights <= 1e-3
        assert losses <= 1e-5
