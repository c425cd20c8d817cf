"""Runs the Triton kernels' tests in processes whose triton interprets: see interpreter.py."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lorafusion.errors import KernelError
from lorafusion.kernels.backend import implementation
from lorafusion.kernels.launch_configs import OPS, PASSES

HERE = Path(__file__).parent
FILES = sorted(path.name for path in HERE.glob("test_triton_*.py"))

NEEDS_TRITON = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def run(name: str, markers: str) -> None:
    pytest_ = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=5"]
    result = subprocess.run(
        [*pytest_, "-m", markers, str(HERE / name)],
        cwd=HERE.parents[1],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode in (0, 5), result.stdout + result.stderr  # 5: nothing has the marker


@NEEDS_TRITON
@pytest.mark.multiproc
@pytest.mark.parametrize("name", FILES)
def test_interpreted(name):
    run(name, "not exhaustive and not gpu")


@NEEDS_TRITON
@pytest.mark.multiproc
@pytest.mark.exhaustive
@pytest.mark.parametrize("name", FILES)
def test_interpreted_exhaustively(name):
    run(name, "exhaustive and not gpu")


@NEEDS_TRITON
@pytest.mark.multiproc
def test_tensors_on_the_cpu_are_refused_by_compiled_kernels():
    code = """
import torch
from lorafusion.errors import KernelError
from lorafusion.kernels.layout import AdapterLayout, ModuleAdapters
from lorafusion.kernels.lora_linear import lora_linear
layout = AdapterLayout.build([], {}, training=True)
try:
    lora_linear(torch.ones(0, 4), torch.ones(5, 4), None, layout, ModuleAdapters(1, {}))
except KernelError as error:
    assert "needs tensors on a GPU" in str(error)
else:
    raise AssertionError("not refused")
"""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=env | {"LORAFUSION_BACKEND": "triton"},
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr


def test_without_triton(monkeypatch):
    for op in (*OPS, *PASSES):
        monkeypatch.delitem(sys.modules, f"lorafusion.kernels.{op}.triton", raising=False)
    monkeypatch.delitem(sys.modules, "lorafusion.kernels.triton_parts", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    implementation.cache_clear()
    try:
        for op in (*OPS, *PASSES):
            with pytest.raises(KernelError, match=f"'{op}' needs triton .* not installed"):
                implementation(op, "triton")
            assert implementation(op, "cpu")
    finally:
        implementation.cache_clear()
