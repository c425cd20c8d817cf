"""A job's losses and weights do not depend on whether the base is cut over the ranks (ZeRO-3)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lorafusion.errors import LaunchError
from lorafusion.models.load import load_base
from tests.conftest import make_llama, make_tokenizer
from tests.models.askew import make_askew
from tests.training import runs
from tests.training.planted import Fault
from tests.training.stages import LONGEST, Case, Ended, Stages

pytestmark = pytest.mark.multiproc
Jobs = list[dict[str, Any]]
ZERO = {"zero": 3}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    make_tokenizer(folder)
    make_llama(folder, tied=True, layers=3)
    make_askew(folder)
    return folder


@pytest.fixture(scope="module")
def stages(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stages]:
    with Stages(tmp_path_factory.mktemp("stages"), base) as running:
        yield running


def train(stages: Stages, case: Case, jobs: Jobs, **settings: Any) -> Ended:
    ended = stages.run(case, jobs, **{"parallel": ZERO, **settings})
    assert ended.codes == [0] * (case.stages * case.replicas), ended.err
    assert {job["state"] for job in ended.jobs.values()} == {"succeeded"}
    return ended


def test_float64_equals_one_process(
    base: Path, four_jobs: Jobs, stages: Stages, tmp_path: Path
) -> None:
    """And each of two ranks keeps half of the base, whose hash is the whole one's."""
    alone = runs.run(tmp_path / "alone", base, four_jobs, dtype="float64")
    case = Case(tmp_path / "2", 1, replicas=2, trace=None)
    ended = train(stages, case, four_jobs, dtype="float64", recompute=False)
    for job in four_jobs:
        ours, theirs = tmp_path / "2" / job["name"], tmp_path / "alone" / job["name"]
        start = runs.initial(base, job, "float64")
        changes = [runs.change(runs.state(folder), start) for folder in (ours, theirs)]
        weights = runs.total_difference(*changes)
        losses = runs.loss_difference(runs.losses(ours), runs.losses(theirs))
        runs.figure(f"ZeRO-3, {job['name']}, float64: change of weights after 20 steps", weights)
        runs.figure(f"ZeRO-3, {job['name']}, float64: losses", losses)
        assert weights <= 1e-9
        assert losses <= 1e-9
    assert json.loads(ended.out)["base_sha256"] == alone.base_sha256
    whole = sum(tensor.nbytes for tensor in load_base(str(base), "float64").tensors.values())
    assert all(whole / 2 <= part <= 0.51 * whole for part in kept(tmp_path / "2"))


def kept(output: Path) -> list[int]:
    """Bytes of the base that each rank keeps, from its trace."""
    traces = sorted((output / "trace").glob("rank-*.jsonl"))
    lines = [[json.loads(line) for line in trace.read_text().splitlines()] for trace in traces]
    return [next(line["base"] for line in of_rank if line["kind"] == "memory") for of_rank in lines]


def test_deterministic_mode_gives_equal_bytes(
    base: Path, four_jobs: Jobs, stages: Stages, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"dtype": "float32", "deterministic": True}
    short = [{**job, "max_steps": 5 + i} for i, job in enumerate(four_jobs)]
    runs.run(tmp_path / "one", base, short, **settings)
    offload = {"zero": 3, "offload": "cpu"}
    train(stages, Case(tmp_path / "2", 1, replicas=2), short, parallel=offload, **settings)
    train(stages, Case(tmp_path / "1", 1), short[1:3], recompute=True, **settings)
    for folder in ("2", "1"):
        for job in short:
            if (tmp_path / folder / job["name"]).exists():
                one = tmp_path / "one" / job["name"]
                runs.assert_same_bytes(tmp_path / folder / job["name"], one)


FAULTS = ("forward", "backward", "collect", "eval", "norm", "step")


def test_a_job_that_fails_on_one_rank_harms_no_other(
    base: Path, four_jobs: Jobs, stages: Stages, tmp_path: Path
) -> None:
    """The rank that has its place makes more passes then than the other."""
    faults = [Fault(rank, phase, phase, 3) for phase in FAULTS for rank in (0, 1)]
    rows = runs.write_rows(tmp_path / "victims.jsonl", rows=9, longest=8, seed=9)
    victim = {
        "dataset": {"path": rows},
        "adapter": {"r": 2, "lora_dropout": 0.1},
        "global_batch_size": 4,
        "max_steps": 6,
        "max_seq_len": LONGEST,
        "max_bad_steps": 1,
        "eval": {"val_size": 2, "every": 1},
    }
    victims = [{**victim, "name": phase, "seed": seed} for seed, phase in enumerate(FAULTS)]
    neighbours = [{**job, "max_steps": 6} for job in four_jobs[:3]]
    settings: dict[str, Any] = {"dtype": "float32", "deterministic": True}
    runs.run(tmp_path / "alone", base, neighbours, **settings)
    case = Case(tmp_path / "2", 1, replicas=2, faults=faults)
    ended = stages.run(case, [*neighbours, *victims], parallel=ZERO, **settings)
    assert ended.codes == [1, 0], ended.err
    for phase in FAULTS:
        assert ended.jobs[phase]["state"] == "failed", phase
        assert f"planted in {phase}" in ended.jobs[phase]["reason"]
    for job in neighbours:
        runs.assert_same_bytes(tmp_path / "2" / job["name"], tmp_path / "alone" / job["name"])


@pytest.mark.parametrize("phase", ["full", "full-backward", "full-backward-midway"])
def test_memory_that_runs_out_on_one_rank(
    phase: str, base: Path, four_jobs: Jobs, stages: Stages, tmp_path: Path
) -> None:
    """It cuts its places in parts, each of which is a pass of its own; losses stay the same."""
    short = [{**job, "max_steps": 4} for job in four_jobs]
    runs.run(tmp_path / "alone", base, short, dtype="float64")
    case = Case(tmp_path / "2", 1, replicas=2, faults=[Fault(1, phase, "wide", 40)])
    ended = train(stages, case, short, dtype="float64")
    assert "ran out of memory" in ended.err
    for job in short:
        found, expected = (runs.losses(tmp_path / name / job["name"]) for name in ("2", "alone"))
        assert runs.loss_difference(found, expected) <= 1e-9


def test_what_a_cut_base_began_one_process_ends(
    base: Path, four_jobs: Jobs, stages: Stages, tmp_path: Path
) -> None:
    """Checkpoints fit, whatever the base was cut into; deterministic, so bytes tell."""
    settings: dict[str, Any] = {"dtype": "float32", "deterministic": True}
    short = [{**job, "max_steps": 6} for job in four_jobs]
    runs.run(tmp_path / "one", base, short, **settings)
    case = Case(tmp_path / "2", 1, replicas=2, stop_after=5)
    ended = stages.run(case, short, parallel=ZERO, **settings)
    assert "paused" in {job["state"] for job in ended.jobs.values()}
    runs.run(tmp_path / "2", base, short, resume=True, **settings)
    for job in short:
        runs.assert_same_bytes(tmp_path / "2" / job["name"], tmp_path / "one" / job["name"])


def test_gathers_are_counted_where_a_profile_is_asked_for(
    four_jobs: Jobs, stages: Stages, tmp_path: Path
) -> None:
    """Three layers of 7 matrices, the embedding and the tied head of each forward."""
    short = [{**four_jobs[0], "max_steps": 2, "eval": {}}]
    ended = train(stages, Case(tmp_path, 1, replicas=2, trace=True), short, deterministic=False)
    found = re.search(r"gathered (\S+) GB of weights in (\d+)\s+collectives", ended.err)
    assert found, ended.err
    forward, backward = 3 * 7 + 2, 3 * 7
    assert int(found[2]) % (forward + backward) == 0


def test_a_killed_rank_ends_the_run(
    base: Path, four_jobs: Jobs, stages: Stages, tmp_path: Path
) -> None:
    """Whoever waits for it in a collective ends too."""
    case = Case(tmp_path, 1, replicas=2, faults=[Fault(1, "kill", "wide", 2)])
    ended = stages.run(case, four_jobs[:2], parallel=ZERO)
    assert ended.codes == [1, -9], ended.err
    assert "rank 1" in ended.err


def test_zero_in_one_process_says_how_to_start_it(
    base: Path, four_jobs: Jobs, tmp_path: Path
) -> None:
    with pytest.raises(LaunchError, match="lorafusion train FILE --replicas D"):
        runs.run(tmp_path, base, four_jobs[:1], parallel=ZERO)


@pytest.mark.parametrize("mode", ["spread", "auto"])
def test_jobs_on_replicas_of_their_own(
    mode: str, base: Path, four_jobs: Jobs, stages: Stages, tmp_path: Path
) -> None:
    """They still need one another's parts of the base, and end at different times."""
    short = [{**job, "max_steps": 3 + 2 * i} for i, job in enumerate(four_jobs)]
    runs.run(tmp_path / "alone", base, short, dtype="float64")
    train(stages, Case(tmp_path / "2", 1, replicas=2, mode=mode), short, dtype="float64")
    for job in short:
        found, expected = (runs.losses(tmp_path / name / job["name"]) for name in ("2", "alone"))
        assert runs.loss_difference(found, expected) <= 1e-9


def test_zero_with_stages_is_refused_on_all_ranks(
    four_jobs: Jobs, stages: Stages, tmp_path: Path
) -> None:
    ended = stages.run(Case(tmp_path, 2), four_jobs[:1], parallel=ZERO)
    assert ended.codes == [2, 2], ended.err
    assert "--stages 2" in ended.err
    assert "Leave --stages out and give --replicas" in ended.err
