"""Surroundings of a machine that is as the test says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorafusion.doctor.surroundings import Surroundings

Around = Callable[..., Surroundings]
TORCH = {
    "version": "2.13.0",
    "cuda": None,
    "hip": None,
    "instructions": "AVX2",
    "threads": 4,
    "loops": {"build": "lora_v3.so", "error": None},
    "devices": [],
    "reason": "",
}


@pytest.fixture
def around(tmp_path: Path) -> Around:
    """Makes surroundings: four cores, no /proc, no environment, empty folders, no child process."""

    def make(facts: dict[str, Any] | None = None, **changes: Any) -> Surroundings:
        known = {"torch": TORCH, **(facts or {})}
        plain = Surroundings(
            env={},
            cpuinfo="",
            meminfo="",
            cgroup_root=tmp_path / "cgroup",
            own_cgroup="",
            cores=4,
            home=tmp_path / "home",
            output=tmp_path / "runs",
            facts=known.__getitem__,
            amx=lambda: False,
        )
        return dataclasses.replace(plain, **changes)

    return make
