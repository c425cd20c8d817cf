"""``lorafusion bench kernels`` and ``tune``: what they compute, count and say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from lorafusion.bench import kernels, linear
from lorafusion.bench.agreement import disagreements
from lorafusion.bench.kernels import CPU_CASES, GPU_CASES, Plan, bounds, lines, run
from lorafusion.bench.kernels_plot import draw
from lorafusion.bench.linear import (
    FROZEN,
    OURS,
    PEFT,
    PEFT_CAST,
    TORCH,
    UNFUSED,
    WAYS,
    Case,
    Tensors,
    Timing,
    cpu_timer,
    make_way,
    measure,
)
from lorafusion.cli import build_app
from lorafusion.errors import OutputError

SMALL = Case(rows=22, K=24, N=20, jobs=4, rank=3, dtype="float32", dropout=0.0)
needs_gpu_absent = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def gradients(way):
    """Y, dX, and dA and dB of every job."""
    getattr(way, "prepare", lambda: None)()
    y = way.forward()
    way.backward()
    return y, *way.gradients().values()


@pytest.mark.parametrize("name", [OURS, TORCH, PEFT_CAST])
def test_all_ways_compute_the_same(name):
    tensors = Tensors(SMALL, "cpu")
    found = gradients(make_way(name, tensors))
    for one, other in zip(found, gradients(make_way(PEFT, tensors)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_results_that_differ_stop_the_benchmark(monkeypatch, tmp_path):
    """In the output of any way, and in any gradient; nothing is timed."""
    monkeypatch.setattr(kernels, "CPU_CASES", (SMALL,))
    assert not disagreements(SMALL, WAYS, "cpu")
    with_dropout = Case(40, 24, 20, 2, 3, "float32", 0.3)
    assert not disagreements(with_dropout, WAYS, "cpu")

    right = linear.Ours.gradients

    def wrong(self):
        found = right(self)
        return {**found, "dB of job 3": found["dB of job 3"] * 1.01}

    monkeypatch.setattr(linear.Ours, "gradients", wrong)
    found = disagreements(SMALL, WAYS, "cpu")
    assert [line.partition(":")[0] for line in found] == [OURS, TORCH]
    assert all("dB of job 3 differs by 1.0e-02" in line for line in found)
    result = CliRunner().invoke(
        build_app(), ["bench", "kernels", "--cpu", "--quick", "-o", str(tmp_path / "out")]
    )
    assert result.exit_code == 1
    assert "dB of job 3" in result.output


def test_the_base_alone_is_what_lora_adds_to():
    tensors = Tensors(SMALL, "cpu")
    frozen, ours = make_way(FROZEN, tensors), make_way(OURS, tensors)
    y = gradients(ours)[0]
    assert not torch.allclose(frozen.forward(), y, atol=1e-2)
    for pair in ours.factors:
        pair[1].data.zero_()
    ours.prepare()
    torch.testing.assert_close(frozen.forward(), ours.forward())
    assert sum(len(x) for x in make_way(UNFUSED, tensors)._xs) == 22
    assert len(make_way(UNFUSED, tensors).layers) == 1


def test_dropout_differs_from_step_to_step():
    way = make_way(OURS, Tensors(Case(40, 64, 8, 2, 3, "float32", 0.5), "cpu"))
    way.prepare()
    first = way.forward()
    assert torch.equal(way.forward(), first)
    way.prepare()
    assert not torch.equal(way.forward(), first), "each round is a new microbatch"


def test_the_compiled_loops_are_off_where_they_are_to_be(monkeypatch):
    from lorafusion.kernels.native.library import library

    way, seen = make_way(TORCH, Tensors(SMALL, "cpu")), []
    monkeypatch.setattr(linear, "lora_linear", lambda x, *_: seen.append(library()) or x * 1)
    monkeypatch.setenv("LORAFUSION_NATIVE", "1")
    way.prepare()
    way.forward()
    assert seen == [None]
    assert linear.os.environ["LORAFUSION_NATIVE"] == "1"


def test_ways_take_turns():
    order: list[str] = []

    class Spy:
        def __init__(self, name):
            self.name = name

        def forward(self):
            order.append(self.name)

        def backward(self):
            pass

    times = iter(range(1, 1000))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "make_way", lambda name, _: Spy(name))
        timing = measure(
            SMALL, ["a", "b", "c"], rounds=3, device="cpu", timer=lambda call: call() or next(times)
        )
    assert "".join(order[6:]) == "abcbcacab"
    assert [len(timing.forward[name]) for name in "abc"] == [3, 3, 3], "two rounds do not count"
    assert timing.seconds("a")[0] == 13 + 14


TIMING = Timing(
    CPU_CASES[0],
    {FROZEN: [1.0, 2.0, 1.0], OURS: [1.3, 2.0, 1.4], TORCH: [1.5, 4.0, 2.0], PEFT: [2.0, 4.0, 2.0]},
    {FROZEN: [1.0, 2.0, 1.0], OURS: [1.3, 2.0, 1.4], TORCH: [1.5, 4.0, 2.0], PEFT: [2.6, 4.0, 2.0]},
)


def test_ratios_are_of_the_same_round():
    found = {(line.one, line.other): line for line in lines(TIMING, bounded=True)}
    assert set(found) == {
        (PEFT, OURS),
        (PEFT, TORCH),
        (OURS, FROZEN),
        (TORCH, FROZEN),
        (PEFT, FROZEN),
    }
    ours = found[OURS, FROZEN]
    assert (ours.spread.median, ours.spread.low) == pytest.approx((1.3, 1.0))
    assert ours.bound is not None
    assert (str(ours.bound), ours.bound.holds(1.4), ours.bound.holds(1.41)) == (
        "at most 1.4",
        True,
        False,
    )
    faster = found[PEFT, OURS]
    assert faster.spread.median == pytest.approx(4.6 / 2.6)
    assert faster.bound is not None
    assert (str(faster.bound), faster.bound.holds(1.6), faster.bound.holds(1.59)) == (
        "at least 1.6",
        True,
        False,
    )
    assert found[PEFT, TORCH].bound is None
    assert all(line.bound is None for line in lines(TIMING, bounded=False))


def test_what_is_asked():
    assert {(case.dtype, case.dropout) for case in CPU_CASES} == {
        (dtype, dropout) for dtype in ("bfloat16", "float32") for dropout in (0.0, 0.1)
    }
    assert {(c.rows, c.K, c.N, c.jobs, c.rank) for c in CPU_CASES} == {(2048, 1024, 1024, 4, 16)}
    assert {(c.rows, c.K) for c in GPU_CASES} == {
        (rows, width) for rows in (2048, 4096, 8192) for width in (4096, 5120, 8192)
    }
    limits = {case.dropout: bounds(case)[-1].limit for case in CPU_CASES if bounds(case)}
    assert limits == {0.0: 1.4, 0.1: 1.7}
    assert not any(bounds(case) for case in CPU_CASES if case.dtype == "float32")


def small_plan(*, quick: bool = False, dtype: str | None = None) -> Plan:
    ways = (FROZEN, OURS, TORCH, PEFT)
    return Plan("cpu", [SMALL, Case(8, 16, 8, 2, 3, "bfloat16", 0.1)], ways, cpu_timer)


def test_results_are_kept_after_each_case(tmp_path):
    seen: list[bool] = []

    def done(_):
        seen.append(json.loads((tmp_path / kernels.RESULT_FILE).read_text())["partial"])

    result = run(small_plan(), rounds=2, folder=tmp_path, overwrite=False, done=done)
    assert seen == [True, False]
    found = json.loads((tmp_path / kernels.RESULT_FILE).read_text())
    assert found == json.loads(json.dumps(result))
    assert found["machine"]["cpu"]
    assert found["ways"] == {way: WAYS[way] for way in (FROZEN, OURS, TORCH, PEFT)}
    case = found["cases"][1]
    assert (case["rows"], case["dtype"], len(case["forward_s"][OURS])) == (8, "bfloat16", 2)
    (ratio,) = [r for r in case["ratios"] if (r["of"], r["to"]) == (OURS, FROZEN)]
    assert ratio["low"] <= ratio["median"] <= ratio["high"]
    assert ratio["bound"] == "at most 1.7"
    assert isinstance(ratio["holds"], bool)
    draw(found, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(OutputError, match="earlier benchmark"):
        run(small_plan(), rounds=1, folder=tmp_path, overwrite=False)


def invoke(*arguments: object):
    return CliRunner().invoke(build_app(), [str(argument) for argument in arguments])


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(Plan, "cpu", small_plan)
    done = invoke("bench", "kernels", "--cpu", "--rounds", 1, "-o", tmp_path)
    assert done.exit_code == 0, done.output
    assert "22 rows of 4 jobs, 24 to 20, rank 3, float32, dropout 0" in done.output
    assert "at most 1.7" in done.output
    assert {path.name for path in tmp_path.iterdir()} == {"kernels.json", "kernels.png"}


@needs_gpu_absent
@pytest.mark.parametrize("command", [["bench", "kernels"], ["tune"]], ids=" ".join)
def test_without_a_gpu(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = invoke(*command)
    assert done.exit_code == 2
    assert "sees no" in done.output
    assert "--aot" in done.output
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "8192x4096"], "--shape '8192x4096'; allowed: rows, inputs and outputs"),
        (["--op", "sideways"], "--op 'sideways'; allowed: down, up"),
    ],
)
def test_bad_input_to_tune(arguments, message):
    done = invoke("tune", *arguments)
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())


def test_aot_wants_a_page_with_marks(tmp_path):
    (tmp_path / "page.md").write_text("no marks")
    done = invoke("bench", "kernels", "--aot", "--write", tmp_path / "page.md")
    assert done.exit_code == 2
    assert "has no lines" in " ".join(done.output.split())
