"""DeepSpeed is imported where it is asked for, compiles nothing, and is refused where it would."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lorafusion.errors import LaunchError
from lorafusion.models import zero, zero_package

ROOT = Path(__file__).parents[2]
# One rank; the list of what DeepSpeed would compile is its own.
CUT_AND_GATHER = """
import os, sys
import torch
import torch.distributed as dist
from torch.nn.functional import linear
from lorafusion.models.zero import SHARED_MEMORY, Zero

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
zero = Zero(torch.device("cpu"), dist.group.WORLD, offload=False)
weight = torch.nn.Parameter(torch.arange(15, dtype=torch.float64).view(3, 5), requires_grad=False)
given = weight.clone()
zero.cut([weight])
assert weight.shape == (3, 5) and weight.isnan().all()
assert zero.part(weight).numel() >= 15
zero.log()
for _ in range(2):
    with zero.gathered([weight]):
        assert torch.equal(weight, given)
    assert weight.isnan().all()
import deepspeed.ops
assert deepspeed.ops.__compatible_ops__[SHARED_MEMORY] is False
assert torch.nn.functional.linear is linear, "DeepSpeed has put its own in place of torch's"
"""


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process that has no program of this machine at hand."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": environment.pop("HOME"), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_neither_ninja_nor_a_compiler_is_needed(tmp_path: Path) -> None:
    done = run(CUT_AND_GATHER, HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert not done.stdout, "stdout is for results"
    assert not list(tmp_path.rglob("*.so")), "something was compiled"


def test_deepspeed_would_have_compiled(tmp_path: Path) -> None:
    """The bypass is still needed; this fails when a version of DeepSpeed makes it superfluous."""
    code = "import lorafusion.models.zero as zero\nzero._compile_nothing = lambda *_: None\n"
    done = run(code + CUT_AND_GATHER, HOME=str(tmp_path))
    assert done.returncode != 0
    assert "ninja" in done.stderr.lower()


@pytest.mark.parametrize("ops", [{}, {"__compatible_ops__": ["deepspeed_shm_comm"]}])
def test_another_shape_of_deepspeed_is_refused(ops: dict[str, Any]) -> None:
    strange: Any = SimpleNamespace(ops=SimpleNamespace(**ops))
    with pytest.raises(LaunchError, match=r"DeepSpeed 0\.99 does not say .*deepspeed==0\.19"):
        zero._compile_nothing(strange, "0.99")  # pyright: ignore[reportPrivateUsage]


def test_without_deepspeed_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    assert zero_package.require_deepspeed().startswith(f"{zero_package.KNOWN}.")
    monkeypatch.setattr(zero_package, "version", missing)
    with pytest.raises(LaunchError, match=r"pip install 'lorafusion\[zero\]'"):
        zero_package.require_deepspeed()


def test_a_run_that_does_not_ask_loads_none_of_it(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 3)
    job = {"name": "a", "dataset": {"path": str(tmp_path / "rows.jsonl")}, "max_steps": 1}
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps({"base_model": str(tiny_base), "threads": 1, "jobs": [job]}))
    code = (
        "import sys, lorafusion.cli as cli\n"
        f"sys.argv[1:] = ['train', {str(file)!r}, '-o', {str(tmp_path / 'out')!r}]\n"
        "try:\n    cli.main()\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "assert 'torch' in sys.modules and 'deepspeed' not in sys.modules"
    )
    done = run(code, HOME=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
