"""The formula, held against numbers worked out by hand and against the modules of a real base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorafusion.planner.plan import Place, PlannedSegment
from lorafusion.reports.flops import Shape, Work, stage_work
from tests.plans.samples import segment

SHAPE = Shape(
    hidden=8, vocab=32, query=6, layers=(1, 3), layer_parameters=100, token_flops={"a": 60.0}
)


def test_a_place_by_hand() -> None:
    """Samples of 10 and 20 tokens of which 3 and 4 are labelled, on 1 + 3 layers."""
    part = PlannedSegment("a", 1, (0, 1), (10, 20), labelled=(3, 4))
    first, last = stage_work(SHAPE, [Place("train", (part,))])
    linears, head, lora = 4 * 100 * 30, 4 * 8 * 32 * 7, 60 * 30
    attention = 2 * 2 * 6 * (10**2 + 20**2) / 2 * 3.5
    assert first.linears == linears and last.linears == 3 * linears
    assert first.attention == attention and last.attention == 3 * attention
    assert (first.head, last.head) == (0, head)
    assert first.lora == pytest.approx(lora / 4) and last.lora == pytest.approx(lora * 3 / 4)
    assert first.total + last.total == pytest.approx(4 * (linears + attention) + head + lora)


def test_an_eval_has_the_forward_alone() -> None:
    train = sum(stage_work(SHAPE, [Place("train", (segment("a", 1, 10),))]), Work())
    evaluated = sum(stage_work(SHAPE, [Place("eval", (segment("a", 1, 10),))]), Work())
    assert evaluated.linears == train.linears / 2 and evaluated.head == train.head / 2
    assert evaluated.attention == pytest.approx(train.attention / 3.5)
    assert evaluated.lora == train.lora / 3
    assert sum(stage_work(SHAPE, [Place("noop")]), Work()) == Work()


def test_the_shape_of_a_real_run(real: Path) -> None:
    """N, h, V and the jobs' operations are those of the modules that PEFT and torch have."""
    from transformers import AutoModelForCausalLM

    facts = json.loads((real / "trace" / "run.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(facts["base_model"])
    linears = {n: m for n, m in model.named_modules() if type(m).__name__ == "Linear"}
    head = linears.pop("lm_head")
    shape = Shape.of(facts)
    assert shape is not None
    assert (shape.vocab, shape.hidden) == tuple(head.weight.shape)
    assert shape.layer_parameters * sum(shape.layers) == sum(
        linear.weight.numel() for linear in linears.values()
    )
    query = next(linear for name, linear in linears.items() if name.endswith("q_proj"))
    assert shape.query == query.out_features
    wanted = [m for n, m in linears.items() if n.endswith(("q_proj", "v_proj"))]
    by_hand = sum(6 * 3 * (m.in_features + m.out_features) for m in wanted)
    assert shape.token_flops["attention"] == by_hand


def test_no_shape_no_operations() -> None:
    assert Shape.of({}) is None and Shape.of({"shape": None, "jobs": []}) is None
