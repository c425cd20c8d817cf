"""torch, GPUs and triton, by what a child process says of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lorafusion.doctor import devices
from lorafusion.doctor.surroundings import Surroundings
from tests.doctor.conftest import TORCH

Around = Callable[..., Surroundings]
H100 = {"name": "NVIDIA H100", "bytes": 85 * 10**9, "capability": "9.0", "error": None}


def torch_facts(**changes: Any) -> dict[str, Any]:
    return {"torch": {**TORCH, **changes}}


def test_torch_that_loads(around: Around) -> None:
    finding = devices.torch(around())
    assert finding.status == "ok"
    assert finding.found == "2.13.0, built for the CPU alone; AVX2, 4 threads by default"
    cuda = devices.torch(around(torch_facts(cuda="13.0", version="2.14.0+cu130")))
    assert (cuda.status, "CUDA 13.0" in cuda.found) == ("ok", True)


def test_torch_that_is_too_old_or_broken_or_absent(
    around: Around, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = devices.torch(around(torch_facts(version="2.4.0")))
    assert (old.status, "needs torch >=" in old.means) == ("missing", True)
    broken = devices.torch(around({"torch": {"error": "ImportError: libgomp.so.1"}}))
    assert (broken.status, "libgomp.so.1" in broken.found) == ("missing", True)
    assert (broken.fix or "").startswith("pip install --force-reinstall 'torch>=")
    monkeypatch.setattr(devices, "installed", lambda _: None)
    assert devices.torch(around()).found == "torch is not installed"


@pytest.mark.parametrize(
    ("drivers", "changes", "status", "phrase"),
    [
        ([], {}, "ok", "no driver"),
        (["NVIDIA"], {}, "warning", "torch is built for the CPU alone"),
        (["NVIDIA"], {"cuda": "13.0", "reason": "driver too old"}, "warning", "driver too old"),
        (["AMD"], {"hip": "7.0"}, "warning", "CUDA_VISIBLE_DEVICES may hide them"),
        (["NVIDIA"], {"cuda": "13.0", "devices": [H100]}, "ok", "H100, 85 GB, capability 9.0"),
        (
            ["NVIDIA"],
            {"cuda": "13.0", "devices": [{**H100, "error": "no kernel image"}]},
            "warning",
            "a product fails: no kernel image",
        ),
    ],
)
def test_gpus(
    around: Around,
    monkeypatch: pytest.MonkeyPatch,
    drivers: list[str],
    changes: dict[str, Any],
    status: str,
    phrase: str,
) -> None:
    monkeypatch.setattr(devices, "_drivers", lambda _: drivers)
    finding = devices.accelerators(around(torch_facts(**changes)))
    assert finding.status == status
    assert phrase in finding.found
    assert (finding.fix is None) == (status == "ok")


def test_cpu_kernels(around: Around) -> None:
    assert devices.cpu_kernels(around()).status == "ok"
    unbuilt = torch_facts(loops={"build": None, "error": None})
    assert "not built" in devices.cpu_kernels(around(unbuilt)).found
    off = devices.cpu_kernels(around(unbuilt, env={"LORAFUSION_NATIVE": "0"}))
    assert off.fix == "unset LORAFUSION_NATIVE"
    broken = torch_facts(loops={"build": None, "error": "OSError: libstdc++"})
    assert "libstdc++" in devices.cpu_kernels(around(broken)).found
    assert "not known" in devices.cpu_kernels(around({"torch": {"error": "broken"}})).means


def test_triton(around: Around, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "installed", lambda _: None)
    assert devices.triton(around()).status == "missing"  # no GPU: nobody misses it
    assert devices.triton(around(torch_facts(devices=[H100]))).fix == "pip install triton"
    monkeypatch.setattr(devices, "installed", lambda _: "3.9.0")
    for answer, status, phrase in [
        ({"on_device": True, "right": True}, "ok", "a kernel runs on the device"),
        ({"on_device": False, "right": True}, "ok", "interpreted"),
        ({"on_device": True, "right": False}, "warning", "wrong numbers"),
        ({"error": "RuntimeError: Python.h"}, "warning", "Python.h"),
    ]:
        finding = devices.triton(around({"triton": answer}))
        assert (finding.status, phrase in finding.found) == (status, True), answer
