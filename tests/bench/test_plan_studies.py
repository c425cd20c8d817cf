"""The planner's figures that need no case: a large model, balance by time, scale."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lorafusion.bench import (
    plan_balance,
    plan_large,
    plan_scale,
    plan_simulated,
    results,
)
from lorafusion.bench.demo_lengths import DEMO_LENGTHS
from lorafusion.bench.plan_mixes import DEMO, LONG, MIXES, SUMMARIES, Mix, make_queues
from lorafusion.bench.plan_plot import draw
from lorafusion.errors import BenchError, OutputError
from lorafusion.planner.verify import verify_plan

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "planner"
SLOW = pytest.mark.slow


# A large model


@pytest.mark.parametrize(
    ("mix", "stages"),
    [
        pytest.param(mix, stages, id=f"{mix.name}-{stages}", marks=[SLOW] if stages > 8 else [])
        for mix in MIXES
        for stages in plan_large.STAGES
    ],
)
def test_a_large_model_is_kept_busy(mix: Mix, stages: int) -> None:
    run, plan = plan_large.ours(mix, stages)
    verify_plan(plan, run.queues)
    played = plan_simulated.play(run, plan)
    assert 45 * stages <= played.places <= 65 * stages
    by_stages, by_ramp = plan_large.bounds(run, plan)
    most = plan_large.MOST
    if by_stages + by_ramp < most["bubble"] and by_stages < most["bubble_without_ramp"]:
        assert played.bubble <= most["bubble"]
        assert played.bubble_without_ramp <= most["bubble_without_ramp"]
    else:
        # Whole layers on 16 stages, and a head that takes a fifth of a layer more on the last.
        assert (mix, stages) == (DEMO, 16)
        assert played.bubble <= by_stages + by_ramp + 0.01


def test_ways_of_the_large_model() -> None:
    found = plan_large.together(SUMMARIES, 4)
    ways = found["ways"]
    assert list(ways) == list(plan_large.WAYS)
    assert sum(found["layers"]) == 80
    assert ways["one_after_another"]["bubble"] > ways["each_alone"]["bubble"] > 0.2
    best = max(ways, key=lambda way: ways[way]["tokens_per_s"])
    assert best == "ours"
    result = results.result("large", base="B", places_a_stage=50, runs=[found])
    table = plan_large.markdown(result)
    assert "| summaries | 4 | 40, 20, 12, 20 |" in table
    for way in ways.values():
        shares = f"{way['bubble']:.1%} / {way['bubble_without_ramp']:.1%}"
        assert f"| {shares}, {way['tokens_per_s']:,.0f} |" in table


def test_queues_are_the_mix() -> None:
    queues = make_queues(DEMO, stages=8, places=100)
    assert queues == make_queues(DEMO, stages=8, places=100)
    assert [len(queue.batches[0].samples) for queue in queues] == [384, 160, 96, 56]
    tokens = [sum(sum(batch.lengths) for batch in queue.batches) for queue in queues]
    assert min(tokens) >= 25 * DEMO.capacity_tokens
    rows = sum(sum(batch.labelled) for batch in queues[2].batches)
    assert rows / tokens[2] == pytest.approx(0.78, abs=0.03)  # alpaca
    assert max(
        max(b.lengths) for q in make_queues(LONG, stages=4, places=60) for b in q.batches
    ) == (LONG.longest)


def test_the_demos_lengths() -> None:
    for name, text in DEMO_LENGTHS.items():
        pairs = [tuple(map(int, pair.split("/"))) for pair in text.split()]
        assert len(pairs) == 256, name
        assert all(0 < labelled < tokens for tokens, labelled in pairs)


def test_runs_in_turn() -> None:
    one = plan_simulated.Played(10, 1, 0.2, 0.1, 30.0, 100.0)
    two = plan_simulated.Played(20, 2, 0.5, 0.4, 10.0, 200.0)
    both = plan_simulated.Played.in_turn([one, two])
    assert (both.places, both.noops, both.makespan_s) == (30, 3, 40.0)
    assert both.bubble == pytest.approx((0.2 * 30 + 0.5 * 10) / 40)
    assert both.tokens_per_s == pytest.approx((3000 + 2000) / 40)


# Balance by time


def test_balanced_by_time_is_at_least_twice_as_even() -> None:
    found = plan_balance.compare("Llama-3.1-8B", 4, 120)
    assert found["attention_share"] > 0.1
    assert found["ways"]["time"]["longest"] == LONG.longest
    assert found["ways"]["time"]["spread"] <= plan_balance.MOST * found["ways"]["tokens"]["spread"]
    assert found["ways"]["time"]["bubble"] < found["ways"]["tokens"]["bubble"]
    table = plan_balance.markdown(results.result("balance", **settings(), runs=[found]))
    assert f"{found['ratio']:.2f}" in table


def settings() -> dict[str, Any]:
    return {"longest": LONG.longest, "capacity_tokens": LONG.capacity_tokens, "jobs": 8}


@pytest.mark.slow
@pytest.mark.parametrize(("base", "stages"), plan_balance.RUNS)
def test_balanced_by_time_on_every_run(base: str, stages: int) -> None:
    found = plan_balance.compare(base, stages, plan_balance.PLACES * stages)
    assert found["ratio"] <= plan_balance.MOST


# Scale


def test_scale_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    found = plan_scale.in_a_process(2)
    assert (found["samples"], found["noops"]) == (128, 0)
    assert 10 <= found["places"] <= 30
    assert 1e7 < found["peak_bytes"] < 1e9
    monkeypatch.setattr(plan_scale.sys, "executable", "false")
    with pytest.raises(BenchError, match="planning 3 samples a job failed"):
        plan_scale.in_a_process(3)


def test_the_case_is_the_same_each_time() -> None:
    case = plan_scale.make_case(20)
    assert case == plan_scale.make_case(20)
    assert [len(job.lengths) for job in case.jobs] == [20] * 64
    # Medians 400 and 1,200.
    assert sum(case.jobs[2].lengths) > 1.5 * sum(case.jobs[0].lengths)


def test_growth() -> None:
    samples = [1_000, 10_000, 100_000, 1_000_000]
    straight = [plan_scale.n_log_n(n) for n in samples]
    assert plan_scale.exponent(samples, straight) == pytest.approx(1)
    assert plan_scale.exponent(samples, [99.0, *straight[1:]]) == pytest.approx(1)
    assert plan_scale.exponent(samples, [n**2 for n in samples]) == pytest.approx(1.83, abs=0.02)


def test_the_plot_and_table_of_scale(tmp_path: Path) -> None:
    size = {"samples": 1024, "places": 9, "window_s": 0.1, "plan_s": 1.0, "peak_bytes": 5e7}
    sizes = [size, size | {"samples": 640_000, "plan_s": 50.0}]
    about = {"jobs": 64, "stages": 8, "capacity": 8192, "batch": 16, "window": 64, "exponent": 0.9}
    result = results.result("scale", sizes=sizes, **about)
    draw(result, tmp_path / "scale.png")
    assert (tmp_path / "scale.png").read_bytes().startswith(b"\x89PNG")
    per = 1e9 / (1024 * 10)
    assert f"| 1,024 | 9 | 0.10 | 1.0 | {per:.0f} | 50 |" in plan_scale.markdown(result)


# Results and pages


def test_results_are_written_and_read(tmp_path: Path) -> None:
    found = results.result("large", runs=[])
    path = results.write(found, tmp_path / "new")
    assert results.read(path) == json.loads(json.dumps(found))
    path.write_text('{"format": 99}')
    with pytest.raises(BenchError, match="format is 99"):
        results.read(path)
    with pytest.raises(OutputError, match="cannot be used"):
        results.write(found, path)
