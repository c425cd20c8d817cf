"""Jobs that join a run that is under way, in one process."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from lorafusion.launch.local import LocalOptions, finish_local
from lorafusion.launch.stopping import StopRequest
from lorafusion.training.memory import held_bytes
from lorafusion.training.result import RunResult
from tests.training import runs
from tests.training.timetable import Timetable

Job = dict[str, Any]


def serve(
    folder: Path,
    base: Path,
    first: Sequence[Job],
    coming: Mapping[str | None, Sequence[tuple[int, Job]]],
    **settings: Any,
) -> tuple[RunResult, Timetable]:
    """A run of ``first``, and of those that come."""
    table = Timetable(folder, coming)
    spec = runs.make_spec(base, first or runs.four_jobs(folder)[:1], **settings)
    if not first:
        spec = spec.model_copy(update={"jobs": ()})
    options = LocalOptions(folder, stop=StopRequest(), trace="off", arrivals=table)
    return finish_local(spec, options, table), table


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> list[Job]:
    return runs.four_jobs(tmp_path_factory.mktemp("rows"), steps=8)


def test_bytes_are_those_of_a_job_alone(jobs: list[Job], tiny_base: Path, tmp_path: Path) -> None:
    """One is there, one comes in its midst, one after both have ended, one while nobody trains."""
    wide, attention, regex, plain = jobs
    result, table = serve(
        tmp_path / "with",
        tiny_base,
        [wide],
        {"wide": [(3, attention), (-1, plain)], "attention": [(-1, regex)]},
        deterministic=True,
    )
    assert {job.name: job.state for job in result.jobs} == dict.fromkeys(
        (job["name"] for job in jobs), "succeeded"
    )
    # It trains while the first goes on.
    joined = table.order.index(("attention", 1))
    assert any(name == "wide" for name, _ in table.order[joined:])
    for job in jobs:
        runs.run(tmp_path / "alone", tiny_base, [job], deterministic=True, resume=False)
        name = job["name"]
        runs.assert_same_bytes(tmp_path / "with" / name, tmp_path / "alone" / name)
        assert (tmp_path / "with" / name / "adapter" / "adapter_config.json").exists()
        (tmp_path / "alone").rename(tmp_path / f"alone-{name}")
        (tmp_path / "alone").mkdir()
        (tmp_path / f"alone-{name}").rename(tmp_path / "alone" / f"of-{name}")


def test_from_an_empty_run(jobs: list[Job], tiny_base: Path, tmp_path: Path) -> None:
    result, table = serve(
        tmp_path, tiny_base, [], {None: [(0, jobs[0])], jobs[0]["name"]: [(-1, jobs[1])]}
    )
    assert [job.name for job in result.jobs] == [jobs[0]["name"], jobs[1]["name"]]
    assert [job.state for job in result.jobs] == ["succeeded"] * 2
    assert table.ended_jobs == [jobs[0]["name"], jobs[1]["name"]]


def test_one_that_cannot_be_loaded_fails_alone(
    jobs: list[Job], tiny_base: Path, tmp_path: Path
) -> None:
    bad = {**jobs[1], "name": "bad", "dataset": {"path": str(tmp_path / "nothing.jsonl")}}
    odd = {**jobs[1], "name": "odd", "adapter": {"r": 2, "target_modules": ["no_such"]}}
    result, _ = serve(tmp_path / "out", tiny_base, [jobs[0]], {"wide": [(1, bad), (2, odd)]})
    by_name = {job.name: job for job in result.jobs}
    assert by_name["wide"].state == "succeeded"
    assert by_name["bad"].state == by_name["odd"].state == "failed"
    assert "nothing.jsonl" in (by_name["bad"].reason or "")
    assert "no_such" in (by_name["odd"].reason or "")
    assert not (tmp_path / "out" / "odd" / "adapter").exists()


def test_one_that_fits_no_microbatch_fails_alone(
    jobs: list[Job], tiny_base: Path, tmp_path: Path
) -> None:
    path = runs.write_rows(tmp_path / "long.jsonl", rows=4, longest=400, seed=1)
    long = {**jobs[1], "name": "long", "dataset": {"path": path}}
    result, _ = serve(tmp_path / "out", tiny_base, [jobs[0]], {"wide": [(1, long)]})
    by_name = {job.name: job for job in result.jobs}
    assert (by_name["wide"].state, by_name["long"].state) == ("succeeded", "failed")
    assert "serve with a larger --capacity" in (by_name["long"].reason or "")


def test_one_that_was_there_before_goes_on(
    jobs: list[Job], tiny_base: Path, tmp_path: Path
) -> None:
    wide, attention, *_ = jobs
    runs.run(tmp_path / "whole", tiny_base, [attention], deterministic=True)
    stop = runs.StopAfter(5)
    runs.run(tmp_path / "parts", tiny_base, [attention], stop=stop, deterministic=True)
    done = max(step for kind, step in runs.records(tmp_path / "parts" / "attention") if kind)
    assert 0 < done < attention["max_steps"]
    result, table = serve(
        tmp_path / "parts", tiny_base, [wide], {"wide": [(2, attention)]}, deterministic=True
    )
    assert [job.state for job in result.jobs] == ["succeeded"] * 2
    assert min(step for name, step in table.order if name == "attention") == done + 1
    runs.assert_same_bytes(tmp_path / "parts" / "attention", tmp_path / "whole" / "attention")


def test_a_hundred_come_and_go_and_leave_no_memory(
    jobs: list[Job], tiny_base: Path, tmp_path: Path
) -> None:
    """A job holds 0.7 MB of factors, moments and gradients: a hundred would hold 70."""
    import torch

    adapter = {"r": 64, "target_modules": "all-linear"}
    many = [
        {**jobs[0], "name": f"j{i}", "max_steps": 1, "eval": {}, "adapter": adapter, "seed": i}
        for i in range(130)
    ]
    chain = {job["name"]: [(-1, later)] for job, later in pairwise(many)}
    held: dict[str, int] = {}

    class Watched(Timetable):
        def ended(self, result: Any) -> None:
            super().ended(result)
            gc.collect()
            held[result.name] = held_bytes(torch.device("cpu"))

    table = Watched(tmp_path, {None: [(0, many[0])], **chain})
    spec = runs.make_spec(tiny_base, many[:1]).model_copy(update={"jobs": ()})
    options = LocalOptions(tmp_path, trace="off", arrivals=table)
    result = finish_local(spec, options, table)
    assert {job.state for job in result.jobs} == {"succeeded"} and len(result.jobs) == 130
    assert held["j129"] - held["j29"] < 20e6
