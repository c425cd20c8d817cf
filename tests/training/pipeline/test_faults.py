"""What the comparison of courses is worth: an executor that is wrong on one stage is found out."""

from __future__ import annotations

import pytest

from lorafusion.jobs.schema import JobSpec
from lorafusion.planner.plan import Limits, Plan
from lorafusion.planner.queue import JobQueue
from lorafusion.planner.verify import find_violations
from lorafusion.training.queues import whole_queue
from tests.training.pipeline.courses import Course, Settings, make_course
from tests.training.pipeline.faults import FAULTS
from tests.training.pipeline.jobs import make_data
from tests.training.pipeline.teams import Answer, Asked, Teams, differences

pytestmark = pytest.mark.multiproc
STAGES = 3


def test_each_fault_is_found(teams: Teams) -> None:
    right = make_course(Settings(0, STAGES, plain=True))
    near = make_course(Settings(1, STAGES, distance=1, plain=True))
    assert begins_at_once(right) and splits_a_step(right), "the course shows nothing"
    assert any("the first allowed is" in line for line in find_violations(*against_rules(near)))
    faulty = [Asked(STAGES, [right], fault, stage) for fault in FAULTS for stage in (1, 2)]
    asked = [Asked(1, [right, near]), Asked(STAGES, [right]), Asked(STAGES, [near]), *faulty]
    alone, sound, too_near, *wrong = teams.run(asked, timeout_s=100)
    assert found_out(alone, sound, right) is None, sound.errors()
    assert found_out(alone, too_near, near)
    for answer in wrong:
        said = found_out(alone, answer, right)
        assert said, f"{answer.asked.fault} on stage {answer.asked.stage} was not found out"


def test_a_replica_that_steps_alone_is_found(teams: Teams) -> None:
    course = make_course(Settings(2, 1, 2, plain=True))
    asked = [Asked(1, [course]), Asked(1, [course], replicas=2)]
    wrong = Asked(1, [course], "own_gradient", 1, replicas=2)
    alone, sound, answer = teams.run([*asked, wrong], timeout_s=60)
    assert found_out(alone, sound, course) is None, sound.errors()
    said = found_out(alone, answer, course)
    assert said and said != "raised", answer.errors()


def found_out(alone: Answer, answer: Answer, course: Course) -> str | None:
    """What shows that a team did wrong: it raised, or its results differ. None: nothing does."""
    assert set(alone.codes) == {0}, alone.errors()
    assert None not in answer.codes, f"it hangs: {answer.errors()}"
    if set(answer.codes) != {0}:
        return "raised"
    return "\n".join(differences(course, alone.of(course), answer)) or None


def begins_at_once(course: Course) -> bool:
    """A job's next step begins with the very place that brings the verdict on the one before."""
    ends = {(job, step): place for place, job, step, _ in course.steps()}
    return any(
        ends.get((segment.job, segment.step - 1)) == at - STAGES
        for at, place in enumerate(course.places)
        for segment in place.segments
    )


def splits_a_step(course: Course) -> bool:
    """A step has samples in two places or more."""
    keys = [(each.job, each.step) for place in course.places for each in place.segments]
    return len(set(keys)) < len(keys)


def against_rules(course: Course) -> tuple[Plan, list[JobQueue]]:
    """The whole course as a plan for all stages, and what it is to be checked with."""
    specs = [JobSpec.model_validate(job) for job in course.jobs]
    plan = Plan(Limits(1 << 20, stages=STAGES), course.places)
    return plan, [whole_queue(spec, make_data(spec)) for spec in specs]
