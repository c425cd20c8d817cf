"""The figures: of a run whose times are known, and of a real one against what it left."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lorafusion.reports.figures import figures
from lorafusion.reports.reading import read_run
from lorafusion.reports.time_section import PARTS
from tests.plans.samples import SMALL, in_seconds
from tests.reports.conftest import FACTS, MEMORY, MIB, write_metrics

Write = Callable[..., Path]


def test_known_times(write_known: Write) -> None:
    found = figures(read_run(write_known()))
    run = in_seconds(SMALL, load_s=1e-3)
    assert found["pipeline"]["measured_s"] == pytest.approx(run.makespan_s)
    assert found["pipeline"]["bubble"] == pytest.approx(run.bubble, abs=1e-4)
    assert found["fill"] == {
        "capacity": 100,
        "microbatches": 5,
        "noops": 1,
        "mean": pytest.approx((40 + 100 + 50 + 90 + 80) / 500),
        "train": pytest.approx((100 + 50 + 90 + 80) / 400),
        "eval": pytest.approx(0.4),
    }
    for stage, row in enumerate(found["stages"]):
        assert sum(row[name] for name in PARTS) == pytest.approx(run.makespan_s, rel=1e-6)
        assert row["forward_s"] == pytest.approx(0.36) and row["backward_s"] == pytest.approx(0.64)
        assert row["busy_s"] == pytest.approx(run.busy_s[stage])
        assert row["send_s"] > 0 and row["wait_before_s"] > 0


def test_mfu_by_hand(write_known: Write) -> None:
    found = figures(read_run(write_known()))["mfu"]
    trained, evaluated = 320, 40
    squares = 60**2 + 2 * 20**2 + 50**2 + 90**2 + 80**2
    linears = 4 * 100 * (4 * trained + 2 * evaluated)
    head = 8 * 32 * (4 * trained + 2 * evaluated)
    attention = 4 * 2 * 8 * (3.5 * squares + 40**2)
    lora = 60 * trained + 20 * evaluated
    assert found["operations"] == pytest.approx(linears + head + attention + lora)
    seconds = in_seconds(SMALL, load_s=1e-3).makespan_s
    assert found["mfu"] == pytest.approx(found["operations"] / (seconds * 1e9 * 2))
    assert sum(stage["mfu"] for stage in found["stages"]) / 2 == pytest.approx(found["mfu"])
    assert "4·N" in found["formula"]


def test_memory_on_the_clock_of_the_first_forward(write_known: Write) -> None:
    reading = read_run(write_known())
    for samples, row in zip(reading.memory, figures(reading)["memory"], strict=True):
        assert [sample.at_s for sample in samples] == pytest.approx([0.5, 1.0, 1.5])
        assert row["peak_at_s"] == pytest.approx(1.0) and row["peak_bytes"] == 190 * MIB
        kinds = {**{k: v * MIB for k, v in MEMORY.items()}, "activations": 29 * MIB}
        assert row["peak"] == kinds


def test_a_peak_or_a_shape_that_is_not_known(write_known: Write) -> None:
    found = figures(read_run(write_known(facts={**FACTS, "peak_flops": None})))
    assert found["mfu"]["mfu"] is None and found["mfu"]["operations"] > 0
    assert any("the peak is not known (a guess)" in text for text in found["missing"])
    folder = write_known(facts={**FACTS, "shape": None})
    found = figures(read_run(folder))
    assert found["mfu"] is None and found["pipeline"] is not None
    assert any("no shape of the base" in text for text in found["missing"])


def test_a_real_run(real: Path) -> None:
    """Tokens, losses and times agree with result.json and metrics.jsonl."""
    reading = read_run(real)
    found, result = figures(reading), json.loads((real / "result.json").read_text())
    json.dumps(found, allow_nan=False)
    assert found["missing"] == [] and found["ended"]
    assert found["speed"]["tokens_per_s"] == result["tokens_per_s"]
    assert found["speed"]["tokens"] == sum(job["tokens"] for job in result["jobs"])
    assert [job["name"] for job in found["jobs"]] == [job["name"] for job in result["jobs"]]
    for job, wanted in zip(found["jobs"], result["jobs"], strict=True):
        for name in ("state", "steps", "loss_first", "loss_last", "tokens", "eval_after"):
            assert job[name] == wanted[name]
        assert job["compute_s"] > 0
    (stage,) = found["stages"]
    assert sum(job["compute_s"] for job in found["jobs"]) == pytest.approx(stage["busy_s"])
    assert sum(stage[name] for name in PARTS) == pytest.approx(found["pipeline"]["measured_s"])
    assert 0 < found["mfu"]["mfu"] < 1 and 0 < found["fill"]["mean"] <= 1
    assert found["memory"][0]["peak"]["activations"] > 0
    assert found["operations"][0]["operations"]


def test_without_a_result_the_trace_and_the_metrics_speak(copied: Path) -> None:
    whole = figures(read_run(copied))
    (copied / "result.json").unlink()
    found = figures(read_run(copied))
    assert not found["ended"] and found["speed"]["source"].startswith("trace")
    assert found["speed"]["tokens"] == whole["speed"]["tokens"]
    assert found["speed"]["tokens_per_s"] > 0
    for job, wanted in zip(found["jobs"], whole["jobs"], strict=True):
        assert job["state"] == "unfinished"
        for name in ("steps", "loss_first", "loss_last", "eval_before", "eval_after", "tokens"):
            assert job[name] == wanted[name]


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    write_metrics(tmp_path / "a", [float("nan"), 2.0, float("inf")], {0: float("nan")})
    (job,) = figures(read_run(tmp_path))["jobs"]
    assert (job["loss_first"], job["loss_last"], job["eval_before"]) == (None, None, None)
    assert job["steps"] == 3
