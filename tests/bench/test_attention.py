"""``lorafusion.bench.attention``: what it compares, and what stops it."""

from __future__ import annotations

import json

import pytest
import torch

from lorafusion.bench import attention, attention_ways
from lorafusion.bench.attention import QUICK_CASES, WAYS, AttentionCase
from lorafusion.bench.attention_ways import make_ways
from lorafusion.bench.op_run import OpRun
from lorafusion.errors import OutputError, WrongResultError

ON_A_CPU = ["lorafusion", "samples", "padded"]


def test_it_measures_and_writes(tmp_path):
    seen = []
    attention.run(
        OpRun("cpu", 2, tmp_path, quick=True),
        lambda case, over: seen.append((str(case), over["samples"].median)),
    )
    found = json.loads((tmp_path / attention.RESULT_FILE).read_text())
    assert [name for name, _ in seen] == [str(case) for case in QUICK_CASES]
    for case, (_, median) in zip(found["cases"], seen, strict=True):
        assert list(case["forward_s"]) == ON_A_CPU
        both = [
            [f + b for f, b in zip(case["forward_s"][way], case["backward_s"][way], strict=True)]
            for way in ("samples", "lorafusion")
        ]
        ratios = sorted(a / b for a, b in zip(*both, strict=True))
        spread = case["over_ours"]["samples"]
        assert [spread["low"], spread["high"]] == ratios
        assert spread["median"] == median
    lines = attention.markdown(found).splitlines()
    assert lines[2].endswith("| samples / lorafusion | padded / lorafusion |")
    assert lines[-1].startswith("| 3 of 14 to 30 | 4, 2, 16 | window 8, softcap 5, sinks |")
    with pytest.raises(OutputError, match=r"attention\.json"):
        attention.run(OpRun("cpu", 1, tmp_path, quick=True))


@pytest.mark.parametrize("case", QUICK_CASES, ids=str)
def test_every_way_makes_the_same(case):
    ways = make_ways(case, "cpu")
    assert list(ways) == ON_A_CPU
    assert set(ways) <= set(WAYS)
    rows = sum(case.lengths)
    shapes = [(rows, 4, 16), (4, rows, 16), (2, rows, 16), (2, rows, 16)]
    results = {name: way.results() for name, way in ways.items()}
    for name, found in results.items():
        assert [tuple(tensor.shape) for tensor in found] == shapes, name
        for ours, theirs in zip(results["lorafusion"], found, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wrong", ["forward", "backward"])
def test_results_that_differ_stop_it(wrong, monkeypatch, tmp_path):
    right = attention_ways.packed_attention

    def spoilt(query, key, value, rules):
        out = right(query, key, value, rules)
        return out * 1.001 if wrong == "forward" else 2 * out - out.detach()

    monkeypatch.setattr(attention_ways, "packed_attention", spoilt)
    with pytest.raises(WrongResultError, match="results of samples and lorafusion differ"):
        attention.run(OpRun("cpu", 1, tmp_path, quick=True))
    assert not (tmp_path / attention.RESULT_FILE).exists()


def test_cases_are_named():
    case = AttentionCase((25,) * 40, 9, 3, 64, window=128, sinks=True)
    assert str(case) == "40 x 25 rows, 9 heads, 3 KV heads of 64, float32, window 128, sinks"
