"""Random jobs under random plans, cut and joined in mid-run: the same on any grid as on one rank.

Real sites, executors and links; dropout is on, ranks differ, and some jobs have nothing on some
stages. What is compared: every sample's loss, every step's norm and verdict, which samples'
gradients are in it on each stage, and parameters and moments where each job ends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from tests.training.pipeline.courses import Settings, make_course
from tests.training.pipeline.teams import Asked, Found, Teams, differences

pytestmark = pytest.mark.multiproc
STAGES = (2, 3, 4)
# Stages and replicas.
GRIDS = ((1, 2), (2, 2), (1, 3), (3, 2))


@pytest.mark.parametrize(
    "numbers",
    [range(10), pytest.param(range(10, 67), marks=pytest.mark.slow)],
    ids=["few", "many"],
)
def test_random_courses(teams: Teams, numbers: Sequence[int]) -> None:
    made = {s: [make_course(Settings(number, s)) for number in numbers] for s in STAGES}
    pairs = [Asked(n, made[s]) for s in STAGES for n in (1, s)]
    compare(teams, pairs, timeout_s=60 + 4 * len(numbers))


@pytest.mark.parametrize(
    "numbers",
    [range(6), pytest.param(range(6, 40), marks=pytest.mark.slow)],
    ids=["few", "many"],
)
def test_random_courses_on_replicas(teams: Teams, numbers: Sequence[int]) -> None:
    pairs: list[Asked] = []
    for stages, replicas in GRIDS:
        made = [make_course(Settings(number, stages, replicas)) for number in numbers]
        pairs += [Asked(1, made), Asked(stages, made, replicas=replicas)]
    compare(teams, pairs, timeout_s=100 + 8 * len(numbers))


def compare(teams: Teams, pairs: Sequence[Asked], *, timeout_s: float) -> None:
    """Every second team does as the one before it, which is alone."""
    answers = teams.run(pairs, timeout_s=timeout_s)
    for answer in answers:
        assert set(answer.codes) == {0}, answer.errors()
    wrong: list[str] = []
    verdicts: list[float] = []
    for alone, staged in zip(answers[::2], answers[1::2], strict=True):
        for course in alone.asked.courses:
            expected = alone.of(course)
            wrong += [
                f"{course.settings}: {line}" for line in differences(course, expected, staged)
            ]
            verdicts += verdicts_of(expected[0])
    assert not wrong, "\n".join(wrong)
    # Steps are skipped, clipped and left as they are.
    assert {"skipped", "clipped", "whole"} == {kind(verdict) for verdict in verdicts}


def verdicts_of(found: Found) -> list[float]:
    return [verdict for report in found.reports for verdict in report["verdicts"]]


def kind(verdict: float) -> str:
    return "skipped" if math.isnan(verdict) else "clipped" if verdict < 1 else "whole"


def test_equal_bytes_on_any_number_of_replicas(teams: Teams) -> None:
    kind = {"stages": 2, "replicas": 3, "deterministic": True, "leaves": False}
    courses = [make_course(Settings(number, **kind)) for number in range(100, 104)]
    grids = [(1, 1), (1, 3), (2, 3)]
    alone, *others = teams.run([Asked(s, courses, replicas=d) for s, d in grids], timeout_s=100)
    for answer in (alone, *others):
        assert set(answer.codes) == {0}, answer.errors()
    for answer in others:
        for course in courses:
            assert differences(course, alone.of(course), answer) == []


def test_equal_bytes_on_any_number_of_stages(teams: Teams) -> None:
    kind = {"stages": STAGES[-1], "deterministic": True, "leaves": False}
    courses = [make_course(Settings(number, **kind)) for number in range(100, 105)]
    alone, *staged = teams.run([Asked(n, courses) for n in (1, *STAGES)], timeout_s=100)
    for answer in (alone, *staged):
        assert set(answer.codes) == {0}, answer.errors()
    for answer in staged:
        for course in courses:
            assert differences(course, alone.of(course), answer) == []
