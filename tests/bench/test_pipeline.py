"""The benchmark of the pipeline runs, and trains what it says; its speeds are never asserted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorafusion.bench import pipeline, pipeline_plot, pipeline_table, results
from lorafusion.bench.pipeline_jobs import VOCABULARY, JobsStudy
from lorafusion.bench.pipeline_sleep import SleepStudy
from lorafusion.bench.pipeline_ways import CLOSE
from lorafusion.cli.bench_pipeline import bench_pipeline
from lorafusion.errors import BenchError, LaunchError
from lorafusion.planner.plan import Place

SMALL = JobsStudy(rounds=1, steps=2, jobs=3, batch=4, longest=16, hidden=32, layers=2)


@pytest.mark.multiproc
def test_it_measures_and_shows(tmp_path: Path) -> None:
    sleeping = SleepStudy(stages=2, places=10, place_s=0.02, rounds=2)
    found = pipeline.measure([sleeping], SMALL)
    [asleep], jobs = found["sleeping"], found["jobs"]
    for turn in asleep["turns"]:
        # No stage can sleep less than it was asked to.
        assert turn["seconds"] >= asleep["predicted"]["seconds"]
        assert sum(turn["forward_s"]) + sum(turn["backward_s"]) >= 0.02 * 2 * asleep["places"]
        assert 0 <= turn["bubble_without_ramp"] < 1
        assert 0 <= turn["bubble"] < 1
    # The same jobs whatever the way, three turns of two steps each, from a random base.
    assert jobs["loss_difference"] < CLOSE / 100
    assert jobs["first_loss"] == pytest.approx(7.6, abs=0.3)  # ln of the vocabulary
    assert VOCABULARY == 2048
    ways = jobs["ways"]
    assert ways["flush"]["noops"] == 5  # between 3 jobs of 2 steps
    assert ways["flush"]["places"] == 3 * 2 * 2 + 5
    assert ways["together"]["places"] <= 3 * 2 * 2
    assert jobs["together_over"]["flush"]["predicted"] > 1.1
    path = results.write(found, tmp_path)
    assert json.loads(path.read_text()) == found
    pipeline_plot.draw(found, tmp_path / "pipeline.png")
    assert (tmp_path / "pipeline.png").read_bytes().startswith(b"\x89PNG")
    assert "| one after another, a flush a batch | 17 | 5 |" in pipeline_table.markdown(found)


@pytest.mark.multiproc
def test_what_a_rank_says_when_it_fails_is_shown() -> None:
    with pytest.raises(LaunchError, match=r"(?s)study jobs ended with code 1.*PlanError"):
        pipeline.measure([], JobsStudy(layers=1))


def test_sleeps_are_the_predicted_times_slowed_down() -> None:
    case = SleepStudy(stages=4, places=20, place_s=0.06).case()
    spent = [sum(t.forward) + sum(t.backward) for t in case.times]
    busy = [seconds for seconds in spent if seconds]
    assert sum(busy) / len(busy) / 4 == pytest.approx(0.06)
    # The sleeping stages look a place up by what is in it.
    times = dict(zip(case.plan.places, case.times, strict=True))
    assert all(times[p] == t for p, t in zip(case.plan.places, case.times, strict=True))
    assert Place("noop") not in times or not any(times[Place("noop")].forward)
    assert 0 < case.predicted()["bubble_without_ramp"] < case.predicted()["bubble"] < 0.5


@pytest.mark.parametrize("stages", ["", "1", "4;8", "four"])
def test_bad_stages(stages: str) -> None:
    with pytest.raises(BenchError, match="allowed: whole numbers from 2"):
        bench_pipeline(stages=stages)
