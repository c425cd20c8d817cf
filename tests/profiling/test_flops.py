"""DeepSpeed's count of a base's forward beside the formula's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from lorafusion.errors import ProfileError
from lorafusion.profiling.flops import FlopsComparison, compare_flops

LENGTHS, LABELLED = (10, 25, 1), (3, 25, 1)
# Of the tiny Llama of two layers: q 32x32, k and v 16x32, o 32x32, gate and up 48x32, down 32x48.
LAYER = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32


@pytest.fixture(scope="module")
def compared(tiny_base: Path) -> FlopsComparison:
    pytest.importorskip("deepspeed", reason="deepspeed is not installed")
    return compare_flops(str(tiny_base), LENGTHS, LABELLED)


def test_both_count_the_same(compared: FlopsComparison) -> None:
    counted, formula = compared.counted, compared.formula
    assert formula.linears == counted.linears == 2 * 2 * LAYER * sum(LENGTHS)
    assert formula.head == counted.head == 2 * 32 * 320 * sum(LABELLED)
    assert compared.whole_attention == counted.attention
    # 4 · 32 columns, two layers, and of each square the half with the diagonal.
    assert formula.attention == 2 * 4 * 32 * (55 + 325 + 1)
    # Only activations are left: of 48 columns a token and layer, and the rotary's angles.
    assert 2 * 48 * sum(LENGTHS) <= counted.other < 0.01 * counted.total
    assert counted.total == counted.linears + counted.attention + counted.head + counted.other


def test_it_goes_to_json(compared: FlopsComparison) -> None:
    document = json.loads(json.dumps(compared.to_dict()))
    assert document["lengths"] == list(LENGTHS) and document["labelled"] == list(LABELLED)
    assert document["formula"]["total"] == compared.formula.total
    assert set(document["counted"]) == {"linears", "attention", "head", "other", "total"}


def test_torch_is_as_before(compared: FlopsComparison) -> None:
    """The profiler replaces torch's functions: a later one must not be counted, or slower."""
    del compared
    for function in (F.linear, F.silu, F.scaled_dot_product_attention, torch.matmul, torch.add):
        assert "deepspeed" not in (getattr(function, "__module__", None) or "")


@pytest.mark.parametrize(
    ("lengths", "labelled", "said"),
    [
        ((), (), "at least one sample"),
        ((3, 4), (1,), "2 lengths and 1 numbers"),
        ((3,), (4,), "4 labelled rows"),
        ((3,), (0,), "0 labelled rows"),
    ],
)
def test_wrong_numbers(
    tiny_base: Path, lengths: tuple[int, ...], labelled: tuple[int, ...], said: str
) -> None:
    with pytest.raises(ProfileError, match=said):
        compare_flops(str(tiny_base), lengths, labelled)


def test_without_deepspeed_it_says_what_to_install(tiny_base: Path) -> None:
    code = (
        "import sys\n"
        "sys.modules['deepspeed'] = None  # as if it were not installed\n"
        "from lorafusion.errors import ProfileError\n"
        "from lorafusion.profiling.flops import compare_flops\n"
        "try:\n"
        "    compare_flops(sys.argv[1], [3], [1])\n"
        "except ProfileError as error:\n"
        "    print(error)\n"
    )
    command = [sys.executable, "-c", code, str(tiny_base)]
    said = subprocess.check_output(command, cwd=Path(__file__).parents[2], text=True)
    assert "DS_BUILD_OPS=0 pip install 'lorafusion[deepspeed]'" in said


def test_it_is_imported_on_demand() -> None:
    code = "import sys, lorafusion.profiling.flops\nprint('deepspeed' in sys.modules)"
    command = [sys.executable, "-c", code]
    said = subprocess.check_output(command, cwd=Path(__file__).parents[2], text=True)
    assert said == "False\n"
