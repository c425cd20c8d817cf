"""Which job of a sweep is the best: ties, losses that are not finite, jobs that failed."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from lorafusion.jobs.ranking import HELD_OUT, TRAINING, Ranking, Variant, rankings, shown


def variant(job: str, held_out: float | None = None, **more: Any) -> Variant:
    values: dict[str, Any] = {
        "sweep": "s",
        "choice": {"seed": len(job)},
        "state": "succeeded",
        "steps": 2,
        "total_steps": 2,
        "training": 1.0,
        **more,
    }
    return Variant(job=job, held_out=held_out, **values)


def ranked(*variants: Variant) -> Ranking:
    (made,) = rankings(variants)
    json.dumps(made.to_dict(), allow_nan=False)
    assert sorted(v.job for v in made.rows) == sorted(v.job for v in variants)
    return made


def test_the_least_held_out_loss_is_best() -> None:
    made = ranked(variant("a", 2.0), variant("b", 1.5), variant("c", 1.75))
    assert made.metric == HELD_OUT
    assert [v.job for v in made.ranked] == ["b", "c", "a"]
    assert [v.job for v in made.best] == ["b"]
    jobs = made.to_dict()["jobs"]
    assert [(job["rank"], job["best"], job["loss"]) for job in jobs] == [
        (1, True, 1.5),
        (2, False, 1.75),
        (3, False, 2.0),
    ]


def test_equal_losses_are_all_best_in_the_order_of_the_file() -> None:
    made = ranked(variant("z", 1.5), variant("a", 1.5), variant("m", 2.0))
    assert [v.job for v in made.best] == ["z", "a"]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None])
def test_a_loss_that_is_not_finite_has_no_rank(bad: float | None) -> None:
    made = ranked(variant("a", bad), variant("b", 3.0))
    assert made.metric == HELD_OUT
    assert [v.job for v in made.best] == ["b"] and [v.job for v in made.others] == ["a"]
    assert made.to_dict()["jobs"][1]["rank"] is None


@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_what_left_no_adapter_is_not_the_best(state: str) -> None:
    """Though its loss, of before it failed, is the lowest."""
    made = ranked(variant("a", 0.1, state=state), variant("b", 3.0), variant("c", 0.1))
    assert [v.job for v in made.best] == ["c"] and [v.job for v in made.others] == ["a"]
    assert not made.is_best(made.others[0])


def test_all_have_failed() -> None:
    made = ranked(variant("a", 1.0, state="failed"), variant("b", state="failed"))
    assert made.ranked == made.best == () and len(made.others) == 2


def test_without_a_held_out_loss_the_training_loss_counts() -> None:
    made = ranked(variant("a", training=2.0), variant("b", training=1.0))
    assert made.metric == TRAINING and [v.job for v in made.best] == ["b"]
    made = ranked(variant("a", math.nan, training=2.0), variant("b", training=1.0))
    assert made.metric == TRAINING
    # What a failed job was evaluated at does not make the others uncomparable.
    made = ranked(variant("a", 1.0, state="failed"), variant("b", training=1.0))
    assert made.metric == TRAINING and [v.job for v in made.best] == ["b"]


def test_each_sweep_has_its_own() -> None:
    both = rankings([variant("a", 1.0), variant("b", 2.0, sweep="t"), variant("c", 0.5)])
    assert [(r.name, [v.job for v in r.best]) for r in both] == [("s", ["c"]), ("t", ["b"])]


def test_fields_that_go_together_are_one_axis_and_those_that_stay_none() -> None:
    grid = [
        variant(f"{r}-{rate}", 1.0, choice={"r": r, "alpha": 2 * r, "rate": rate, "seed": 1})
        for r in (4, 8)
        for rate in (0.1, 0.2, 0.3)
    ]
    assert ranked(*grid).axes() == (("r", "alpha"), ("rate",))
    assert ranked(variant("a", 1.0)).axes() == ()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-4, "0.0001"),
        (2e-5, "2e-05"),
        (0.123456789, "0.123456789"),
        (8, "8"),
        (True, "true"),
        (None, "null"),
        ("all-linear", "all-linear"),
        ("a\nb", "'a\\nb'"),
        (("q_proj", "v_proj"), "[q_proj, v_proj]"),
        ({"r": 4, "use_rslora": False}, "{r: 4, use_rslora: false}"),
    ],
)
def test_values_as_a_file_has_them(value: object, text: str) -> None:
    assert shown(value) == text


def test_a_thousand_jobs_take_no_time() -> None:
    made = ranked(*(variant(f"j{n}", float(n % 7), choice={"seed": n}) for n in range(1000)))
    assert len(made.best) == 143 and len(made.rows) == 1000
