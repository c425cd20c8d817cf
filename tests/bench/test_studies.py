"""The studies, small: that they run, that the cases train the same, and the tables."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from lorafusion.bench import studies_table
from lorafusion.bench.studies import run_study, wrong_losses
from lorafusion.bench.study_cases import STUDIES, Size

SMALL = Size(scale=0.03, batch=1 / 16)


@pytest.fixture(autouse=True)
def few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def small(name: str, base: Path) -> dict[str, Any]:
    return run_study(STUDIES[name], str(base), 1, size=SMALL, say=lambda text: None)


@pytest.mark.parametrize("name", STUDIES)
def test_cases_at_full_size(name: str, tmp_path: Path) -> None:
    """Job files that hold, ratios of cases that are there, and equal work where it is asked."""
    study = STUDIES[name]
    cases = study.cases(Size())
    turns = {(case.name, way) for case in cases for way in case.ways}
    for ratio in study.ratios:
        assert {ratio.over, *ratio.under} <= turns
    for case in cases:
        spec = case.spec("base", tmp_path / case.name, "float32")
        assert [job.name for job in spec.jobs] == [job.name for job in case.jobs]
        for job in case.jobs:
            lines = (tmp_path / case.name / f"{job.name}.jsonl").read_text().splitlines()
            assert len(lines) == job.samples
    if study.same_loss:
        assert len({sum(job.samples * job.tokens for job in case.jobs) for case in cases}) == 1


def test_more_jobs(tiny_base: Path) -> None:
    found = small("jobs", tiny_base)
    assert not wrong_losses(STUDIES["jobs"], found["turns"])
    assert len({turn["tokens"] for turn in found["turns"]}) == 1
    turns = copy.deepcopy(found["turns"])
    turns[0]["losses"][0][2] *= 1.01
    assert wrong_losses(STUDIES["jobs"], turns)


def test_a_mix_of_lengths_trains_as_each_with_its_like(tiny_base: Path) -> None:
    found = small("lengths", tiny_base)
    assert not wrong_losses(STUDIES["lengths"], found["turns"])
    turns = copy.deepcopy(found["turns"])
    turns[-1]["losses"][-1][2] *= 1.01  # of a job that another case has too
    assert len(wrong_losses(STUDIES["lengths"], turns)) == 1
    both = found["turns"][2]
    mean = sum(turn["tokens_per_s"] for turn in found["turns"][:2]) / 2
    assert found["ratios"][0]["rounds"] == [pytest.approx(both["tokens_per_s"] / mean)]


@pytest.mark.slow  # ten processes, four with PEFT
def test_memory_and_packing(tiny_base: Path) -> None:
    for name in ("memory", "packing"):
        found = small(name, tiny_base)
        assert not wrong_losses(STUDIES[name], found["turns"])
        assert all(turn["peak_rss_mb"] > 100 for turn in found["turns"])


def test_the_table() -> None:
    turn = {"case": "2 jobs", "way": "lorafusion", "tokens": 7424, "tokens_per_s": 250.0}
    turn |= {"peak_rss_mb": 3210.0, "other_cores": 0.04}
    ratio = {"name": "16 over 2 jobs", "bound": 0.9, "memory": False, "rounds": [0.8, 0.95, 1.0]}
    result = {
        "started": "2026-01-02T03:04:05+00:00",
        "machine": {"cpu": "a CPU"},
        "versions": {"python": "3.11", "torch": "2"},
        "base": "B",
        "dtype": "float32",
        "rounds": 2,
        "about": "About it.",
        "turns": [turn, {**turn, "tokens_per_s": 260.0}],
        "ratios": [ratio, {**ratio, "name": "m", "bound": 0.7, "memory": True}],
    }
    lines = studies_table.markdown(result).splitlines()
    assert lines[0] == "About it."
    assert "| 2 jobs | `lorafusion` | 7,424 | 255 (250 to 260) | 3.21 |" in lines
    assert "| 16 over 2 jobs | **0.95** | 0.80 to 1.00 | at least 0.90 |" in lines
    assert "| m | **0.95** | 0.80 to 1.00 | at most 0.70: missed |" in lines
