"""torch, the devices that it sees, and triton on them."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorafusion.doctor.finding import Finding
from lorafusion.doctor.machine import GB
from lorafusion.doctor.requirements import allows, core, installed
from lorafusion.doctor.surroundings import Surroundings

_CPU_TODAY = "training runs on the CPU today"
_TORCH_LOOPS = "adapters run in torch operations: the same results, slower"
_SELECTOR = "https://pytorch.org/get-started/locally"


def torch(around: Surroundings) -> Finding:
    """Whether torch loads, and what it was built for."""
    wanted = next(each for each in core() if each.name == "torch")
    version = installed("torch")
    if version is None:
        fix = f"pip install {wanted.pip}"
        return Finding("missing", "torch is not installed", "nothing can be trained", fix)
    facts = around.facts("torch")
    if "error" in facts:
        found = f"torch {version} cannot be loaded: {facts['error']}"
        fix = f"pip install --force-reinstall {wanted.pip}"
        return Finding("missing", found, "nothing can be trained", fix)
    found = f"{facts['version']}, built for {_build(facts)}; {facts['instructions']}, "
    found += f"{facts['threads']} threads by default"
    if not allows(wanted.versions, str(facts["version"])):
        fix = f"pip install {wanted.pip}"
        return Finding("missing", found, f"LoRAFusion needs torch {wanted.versions}", fix)
    return Finding("ok", found, "it loads, and training can use it")


def cpu_kernels(around: Surroundings) -> Finding:
    """The loops that are compiled when LoRAFusion is installed."""
    facts = around.facts("torch")
    if "error" in facts:
        means = "whether they load is not known until torch does"
        return Finding("warning", "torch cannot be loaded, and they share its threads", means)
    loops = facts["loops"]
    if loops["build"]:
        return Finding("ok", f"{loops['build']} is loaded", "adapters run in compiled loops")
    if around.env.get("LORAFUSION_NATIVE") == "0":
        fix = "unset LORAFUSION_NATIVE"
        return Finding("warning", "turned off by LORAFUSION_NATIVE=0", _TORCH_LOOPS, fix)
    if loops["error"]:
        found = f"they cannot be loaded: {loops['error']}"
    else:
        found = "they were not built: there was no C++ compiler at the installation"
    return Finding("warning", found, _TORCH_LOOPS, "install a C++ compiler, then LoRAFusion again")


def accelerators(around: Surroundings) -> Finding:
    """The GPUs that torch sees, or why it sees none."""
    facts = around.facts("torch")
    if "error" in facts:
        return Finding("warning", "torch cannot be loaded to ask it", "no GPU can be used")
    devices: list[dict[str, Any]] = facts["devices"]
    if not devices:
        return _none_seen(facts, _drivers(around))
    found = "; ".join(
        f"{each['name']}, {each['bytes'] / GB:.0f} GB, capability {each['capability']}"
        for each in devices
    )
    errors = [str(each["error"]) for each in devices if each["error"]]
    if errors:
        fix = f"install a torch built for this device: {_SELECTOR}"
        return Finding("warning", f"{found}; a product fails: {errors[0]}", _CPU_TODAY, fix)
    return Finding("ok", f"{found}; a product on each came out right", _CPU_TODAY)


def triton(around: Surroundings) -> Finding:
    """Whether a small kernel runs."""
    version = installed("triton")
    devices = around.facts("torch").get("devices")
    if version is None:
        if devices:
            means, fix = "GPU kernels are written in it", "pip install triton"
            return Finding("warning", "triton is not installed", means, fix)
        return Finding(
            "missing", "triton is not installed", "not needed: there is no GPU to use it"
        )
    facts = around.facts("triton")
    where = "on the device" if facts.get("on_device") else "interpreted, as there is no device"
    if facts.get("right"):
        return Finding("ok", f"triton {version}: a kernel runs {where}", _CPU_TODAY)
    why = facts.get("error", f"a kernel {where} gave wrong numbers")
    fix = "a C compiler and Python's headers are needed to run a kernel; else reinstall triton"
    return Finding("warning", f"triton {version}: {why}", _CPU_TODAY, fix)


def _build(facts: Mapping[str, Any]) -> str:
    if facts["cuda"]:
        return f"CUDA {facts['cuda']}"
    return f"ROCm {facts['hip']}" if facts["hip"] else "the CPU alone"


def _drivers(around: Surroundings) -> list[str]:
    """What of a GPU's driver is on this machine."""
    path = around.env.get("PATH", "")
    found: list[str] = []
    if Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi", path=path):
        found.append("NVIDIA")
    if Path("/dev/kfd").exists():
        found.append("AMD")
    return found


def _none_seen(facts: Mapping[str, Any], drivers: list[str]) -> Finding:
    hidden = "CUDA_VISIBLE_DEVICES"
    if not drivers:
        found = "none: there is no driver of NVIDIA or AMD"
        if platform.system() == "Darwin":
            found = "none that is used: Apple's GPUs are not looked at"
        return Finding("ok", found, _CPU_TODAY)
    driver = " and ".join(drivers)
    if not facts["cuda"] and not facts["hip"]:
        fix = f"install a torch built for it: {_SELECTOR}"
        found = f"none: an {driver} driver is here, but torch is built for the CPU alone"
        return Finding("warning", found, _CPU_TODAY, fix)
    why = facts["reason"] or f"torch gives no reason; {hidden} may hide them"
    fix = f"see that the driver answers (nvidia-smi, rocm-smi), and look at {hidden}"
    found = f"none, with an {driver} driver and torch for {_build(facts)}: {why}"
    return Finding("warning", found, _CPU_TODAY, fix)
