"""``lorafusion.bench.loss``: what it compares, and what stops it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lorafusion.bench import loss
from lorafusion.bench.loss import CHUNKED, FROZEN, OURS, TORCH, WHOLE, LossCase, Tensors, make_ways
from lorafusion.bench.op_run import OpRun
from lorafusion.errors import WrongResultError
from lorafusion.kernels.native.library import library

CAPPED = LossCase(9, 8, 40, "float32", softcap=2.0)


def test_it_measures_and_writes(tmp_path: Path) -> None:
    seen: list[LossCase] = []
    loss.run(
        OpRun("cpu", 2, tmp_path, quick=True),
        lambda case, ratios: seen.append(case) if WHOLE in ratios else None,
    )
    assert seen == list(loss.QUICK_CASES)
    found = json.loads((tmp_path / loss.RESULT_FILE).read_text())
    for case in found["cases"]:
        assert {FROZEN, OURS, WHOLE} <= set(case["forward_s"])
        assert (TORCH in case["forward_s"]) == (library() is not None)
        assert (CHUNKED in case["forward_s"]) == (
            case["softcap"] is None and hasattr(torch.nn, "LinearCrossEntropyOptions")
        )
        both = [
            [f + b for f, b in zip(case["forward_s"][w], case["backward_s"][w], strict=True)]
            for w in (WHOLE, OURS)
        ]
        ratios = sorted(a / b for a, b in zip(*both, strict=True))
        assert case["over_ours"][WHOLE]["low"] == ratios[0]
        assert case["over_ours"][WHOLE]["high"] == ratios[1]
    first, capped = loss.markdown(found).splitlines()[-2:]
    assert first.startswith("| 64, 32, 3,000 | float32 | none |")
    assert capped.startswith("| 64, 32, 3,000 | float32 | 30 |")
    assert capped.count("| - ") == (CHUNKED in found["cases"][0]["forward_s"])


def test_results_that_differ_stop_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    right = loss.cross_entropy

    def wrong(*arguments):
        total, each = right(*arguments)
        return total * 1.001, each

    monkeypatch.setattr(loss, "cross_entropy", wrong)
    with pytest.raises(WrongResultError, match=f"results of {WHOLE} and {OURS} differ by 1.0e-03"):
        loss.run(OpRun("cpu", 1, tmp_path, quick=True))
    assert not (tmp_path / loss.RESULT_FILE).exists()


@pytest.mark.parametrize("case", [CAPPED, LossCase(9, 8, 40, "float32")], ids=str)
def test_every_way_is_the_loss(case: LossCase) -> None:
    tensors = Tensors(case, "cpu")
    logits = tensors.hidden.double() @ tensors.weight.double().T
    if case.softcap is not None:
        logits = torch.tanh(logits / case.softcap) * case.softcap
    expected = torch.nn.functional.cross_entropy(logits, tensors.targets)
    for name, way in make_ways(tensors).items():
        total, gradient = way.results()
        assert float(total) == pytest.approx(float(expected), rel=1e-5), name
        assert gradient.shape == (9, 8)
        assert gradient.abs().sum() > 0
