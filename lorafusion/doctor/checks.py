"""The list of checks. A new one is a function that returns a Finding, and a line here."""

from __future__ import annotations

from lorafusion.doctor import devices, machine, packages, places, selftest, tools
from lorafusion.doctor.finding import Check

CHECKS: tuple[Check, ...] = (
    Check("Python", "python", packages.python, needed=True),
    Check("Python", "packages", packages.libraries, needed=True),
    Check("Python", "torch", devices.torch, needed=True),
    Check("Python", "extras", packages.extras),
    Check("Machine", "cpu", machine.cpu),
    Check("Machine", "cores", machine.cores),
    Check("Machine", "memory", machine.memory),
    Check("Machine", "openmp", machine.openmp),
    Check("Machine", "limits", machine.limits),
    Check("Machine", "shared_memory", machine.shared_memory),
    Check("Devices", "gpu", devices.accelerators),
    Check("Devices", "triton", devices.triton),
    Check("Tools", "cpu_kernels", devices.cpu_kernels),
    Check("Tools", "compiler", tools.compiler),
    Check("Tools", "deepspeed", tools.deepspeed),
    Check("Hub", "hub", places.hub, seconds=8.0),
    Check("Hub", "hub_token", places.hub_token),
    Check("Hub", "hub_cache", places.hub_cache),
    Check("Folders", "home", places.home_folder),
    Check("Folders", "output", places.output_folder, needed=True),
)

SELF_TEST = Check("Self-test", "self_test", selftest.self_test, needed=True, seconds=300.0)
