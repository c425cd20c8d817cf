"""``lorafusion bench kernels --op shared``: what it compares, and what stops it."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from lorafusion.bench import shared
from lorafusion.bench.shared import APART, FROZEN, QUICK_CASES, TOGETHER, Ours, SharedCase
from lorafusion.cli import build_app


def test_it_measures_and_writes(tmp_path):
    result = CliRunner().invoke(
        build_app(),
        [
            "bench",
            "kernels",
            "--cpu",
            "--quick",
            "--op",
            "shared",
            "--rounds",
            "2",
            "-o",
            str(tmp_path),
        ],
    )
    assert result.exit_code == 0, result.output
    assert result.output.count("over ours: one by one ") == 2
    found = json.loads((tmp_path / "shared.json").read_text())
    assert [case["dropout"] for case in found["cases"]] == [0, 0.1]
    for case in found["cases"]:
        assert set(case["forward_s"]) == {FROZEN, TOGETHER, APART}
        assert len(case["backward_s"][TOGETHER]) == 2
        both = [
            [f + b for f, b in zip(case["forward_s"][w], case["backward_s"][w], strict=True)]
            for w in (APART, TOGETHER)
        ]
        ratios = sorted(a / b for a, b in zip(*both, strict=True))
        assert case["over_ours"][APART]["low"] == ratios[0]
        assert case["over_ours"][APART]["high"] == ratios[1]
    lines = shared.markdown(found).splitlines()
    assert lines[-1].startswith("| 256, 96, 96 + 48 + 48 | float32 | 0.1 |")


def test_results_that_differ_stop_it(monkeypatch, tmp_path):
    right = shared.shared_lora_linear

    def wrong(x, projections, layout):
        *rest, last = right(x, projections, layout)
        return *rest, last * 1.001

    monkeypatch.setattr(shared, "shared_lora_linear", wrong)
    result = CliRunner().invoke(
        build_app(), ["bench", "kernels", "--cpu", "--quick", "--op", "shared", "-o", str(tmp_path)]
    )
    assert result.exit_code == 1
    assert "results of together and one by one differ" in result.output


@pytest.mark.parametrize("together", [True, False])
def test_a_way_makes_everything(together):
    case = SharedCase(9, 8, (6, 4), 2, 3, "float32", 0.2)
    found = Ours(case, "cpu", together=together).results()
    assert [tuple(t.shape) for t in found] == [
        *((9, 6), (9, 4), (9, 8)),
        *((3, 8), (6, 3)) * 2,
        *((3, 8), (4, 3)) * 2,
    ]
    assert all(tensor.abs().sum() > 0 for tensor in found)
    assert QUICK_CASES[0].jobs == 4
    assert found[0].dtype == torch.float32
