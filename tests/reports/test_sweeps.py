"""Tables and plots of sweeps: of one field, two, many, of words; of what failed; hostile names."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from lorafusion.jobs.ranking import Ranking, Variant, rankings
from lorafusion.reports.document import document, section
from lorafusion.reports.sweep_axes import Scale, axes_of
from lorafusion.reports.sweep_plot import sweep_plot
from lorafusion.reports.sweep_section import sweep_section
from tests.plans.samples import HOSTILE
from tests.plans.test_gantt_html import Elements

Loss = Callable[[Mapping[str, Any]], float | None]
RATES = [1e-5, 1e-4, 1e-3]


def grid(fields: Mapping[str, list[Any]], loss: Loss, name: str = "s") -> Ranking:
    choices = [
        dict(zip(fields, values, strict=True)) for values in itertools.product(*fields.values())
    ]
    (made,) = rankings(
        Variant(
            job=f"{name}-{number}",
            sweep=name,
            choice=choice,
            state="failed" if loss(choice) is None else "succeeded",
            steps=3,
            total_steps=3,
            held_out=loss(choice),
            training=None,
        )
        for number, choice in enumerate(choices)
    )
    return made


def by_rate(choice: Mapping[str, Any]) -> float:
    return 2 + abs(math.log10(choice["learning_rate"]) + 4) + choice.get("adapter.r", 0) / 1000


def page(*sweeps: Ranking) -> Elements:
    body = section("sweeps", "Sweeps", sweep_section(sweeps))
    return Elements(document("t", "l", body))  # every element is closed


def labels(elements: Elements) -> list[str]:
    images = [a for a in elements.attributes("svg") if a.get("role") == "img"]
    return [str(a["aria-label"]) for a in images]


def test_one_number_is_a_line() -> None:
    elements = page(grid({"learning_rate": RATES}, by_rate))
    assert labels(elements) == [
        "Held-out loss of 3 jobs by learning_rate; lowest 2.0000 at 0.0001; the table has all"
    ]
    assert elements.texts("h3") == ["s: 3 jobs", "Held-out loss by learning_rate (logarithmic)"]
    (line,) = [a["d"] for a in elements.attributes("path") if a.get("class") == "smooth one"]
    assert line is not None and line.count("L") == 2
    assert [text for text in elements.texts("text") if "★" in text] == ["★ 2.0000"]
    assert [a.get("class") for a in elements.attributes("tr")][1:] == ["best", None, None]
    assert elements.texts("td")[0] == "★ 2.0000"


def test_two_are_lines_and_the_second_is_in_the_legend() -> None:
    elements = page(grid({"adapter.r": [4, 8], "learning_rate": RATES}, by_rate))
    assert len(labels(elements)) == 1
    assert elements.texts("h3")[1:] == [
        "Held-out loss by learning_rate (logarithmic), a line for each adapter.r"
    ]
    lines = [a for a in elements.attributes("path") if a.get("class") == "smooth one"]
    assert len({a["stroke"] for a in lines}) == len(lines) == 2
    assert ["4", "8"] == [text for text in elements.texts("span") if text]


def test_a_word_beside_a_number_is_the_legend() -> None:
    fields = {"learning_rate": RATES, "lr_scheduler": ["linear", "cosine"]}
    elements = page(grid(fields, by_rate))
    assert [text for text in elements.texts("span") if text] == ["linear", "cosine"]


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({"learning_rate": RATES, "adapter.r": [4, 8], "seed": [1, 2]}, 3),
        ({"learning_rate": RATES, "adapter.r": list(range(3, 15))}, 1),
        ({"learning_rate": [1e-4], "seed": list(range(9)), "adapter.r": list(range(1, 10))}, 2),
        ({"learning_rate": [1e-4], "lr_scheduler": ["linear", "cosine"]}, 1),
        ({"learning_rate": [1e-4], "dataset.type": ["text", None], "seed": [1, True]}, 2),
        ({"learning_rate": [1e-4]}, 0),
        ({"learning_rate": [1e-4], "seed": [3, 3]}, 0),
    ],
)
def test_many_fields_have_a_plot_each(fields: Mapping[str, list[Any]], count: int) -> None:
    elements = page(grid(fields, by_rate))
    assert len(labels(elements)) == count
    assert len(elements.texts("table")) == 1


def test_words_are_rows_with_the_best_at_the_top() -> None:
    targets = [["q_proj"], ["q_proj", "v_proj"], "all-linear"]
    elements = page(grid({"target_modules": targets}, lambda c: 3.0 - len(c["target_modules"])))
    texts = [text for text in elements.texts("text") if "_proj" in text or "all" in text]
    assert texts == ["all-linear", "[q_proj, v_proj]", "[q_proj]"]
    worst = lambda c: None if c["target_modules"] == ["q_proj"] else 1.0  # noqa: E731
    failed = page(grid({"target_modules": targets}, worst))
    assert not any("×" in text for text in failed.texts("p") + failed.texts("text"))


def test_failed_jobs_are_marked_and_last() -> None:
    made = grid({"learning_rate": RATES}, lambda c: None if c["learning_rate"] > 5e-4 else 1.0)
    elements = page(made)
    assert elements.texts("text").count("×") == 1
    assert any("× stands for jobs" in text for text in elements.texts("p"))
    assert elements.texts("td")[-5:] == ["–", "0.001", "3/3", "failed", "s-2"]
    assert [text for text in elements.texts("td") if "★" in text] == ["★ 1.0000"] * 2  # equal


@pytest.mark.parametrize("loss", [lambda _: None, lambda _: math.nan])
def test_without_any_loss_there_is_a_table_and_a_reason(loss: Loss) -> None:
    elements = page(grid({"learning_rate": RATES}, loss))
    assert labels(elements) == [] and len(elements.texts("tr")) == 4
    assert any("None is best" in text for text in elements.texts("p"))


def test_nothing_breaks_out() -> None:
    made = grid({HOSTILE: [HOSTILE, "b"], "learning_rate": RATES}, by_rate, name=HOSTILE)
    elements = page(made, grid({HOSTILE: [HOSTILE, "b"]}, lambda c: len(c[HOSTILE]), HOSTILE))
    names = {n for _, attributes, _ in elements.found for n in attributes}
    assert not names & {"style", "onclick", "onload", "onerror"}
    assert elements.texts("script")[0] == "[]"


def test_a_thousand_jobs_fit() -> None:
    made = grid(
        {"seed": list(range(100)), "learning_rate": [n / 1e5 for n in range(1, 11)]}, by_rate
    )
    body = sweep_section([made])
    assert len(body) < 400_000 and len(page(made).texts("tr")) == 1001


def test_scales() -> None:
    assert not Scale.of([1, 10]).log and Scale.of([1, 11]).log
    with_zero = Scale.of([0.0, 0.01, 1.0])
    assert with_zero.log and with_zero.at(0.0) == with_zero.at(0.01) - 1 == -3
    assert not Scale.of([-1.0, 0.001, 5.0]).log
    assert Scale.of([0.0]).span(0.1, 0.1)[0] < Scale.of([0.0]).span(0.1, 0.1)[1]
    assert Scale.of([2.0, 400.0]).marks() == [10.0, 100.0]
    for values in ([1.5, 1.5], [0.0, 0.0], [1e-9, 1e9], [-3.0, -1.0]):
        assert all(math.isfinite(mark) for mark in Scale.of(values).marks())


def test_labels_that_would_overlap_are_left_out_and_the_ends_stay() -> None:
    made = grid({"learning_rate": [n / 1000 for n in range(1, 100)]}, by_rate)
    (axis,) = axes_of(made)
    kept = [text for _, text in axis.labels(made.rows, 2.2)]
    assert kept[0] == "0.001" and kept[-1] == "0.099" and len(kept) < 12
    assert sweep_plot(made).count("<text") < 40
