"""Processor, cores, memory, threads and limits, from files of other machines."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from lorafusion.doctor import machine
from lorafusion.doctor.surroundings import Surroundings

Around = Callable[..., Surroundings]

XEON = """\
processor\t: 0
model name\t: Intel(R) Xeon(R) Platinum 8480+
flags\t\t: fpu avx2 avx512f avx512_bf16 amx_bf16 amx_tile amx_int8

processor\t: 1
model name\t: another
flags\t\t: fpu
"""
OLD = "model name\t: Intel(R) Core(TM) i7\nflags\t\t: fpu sse2 avx2\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd sve bf16\n"


def test_amx_counts_only_where_the_kernel_allows_it(around: Around) -> None:
    allowed = machine.cpu(around(cpuinfo=XEON, amx=lambda: True))
    assert allowed.status == "ok"
    assert "Platinum 8480+" in allowed.found and "amx_tile" in allowed.found
    refused = machine.cpu(around(cpuinfo=XEON, amx=lambda: False))
    assert (refused.status, "refuses AMX" in refused.found) == ("warning", True)
    assert refused.fix


@pytest.mark.parametrize(
    ("text", "found", "means"),
    [
        (OLD, "i7: avx2", "emulated"),
        (ARM, "sve, bf16", "own instructions"),
        ("", "", "nothing is known"),
    ],
)
def test_instructions(around: Around, text: str, found: str, means: str) -> None:
    finding = machine.cpu(around(cpuinfo=text))
    assert finding.status == "ok"
    assert found in finding.found
    assert means in finding.means


def groups(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(
    ("own", "files"),
    [
        ("0::/user/job\n", {"user/job/cpu.max": "max 100000", "user/cpu.max": "250000 100000"}),
        ("0::/on/the/host\n", {"cpu.max": "250000 100000"}),
        (
            "4:cpu,cpuacct:/job\n2:memory:/job\n",
            {
                "cpu,cpuacct/job/cpu.cfs_quota_us": "250000",
                "cpu,cpuacct/job/cpu.cfs_period_us": "100000",
            },
        ),
        (
            "4:cpu,cpuacct:/gone\n",
            {"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"},
        ),
    ],
)
def test_a_control_group_allows_less_than_the_affinity(
    around: Around, tmp_path: Path, own: str, files: dict[str, str]
) -> None:
    groups(tmp_path / "cgroup", files)
    finding = machine.cores(around(own_cgroup=own))
    assert finding.status == "warning"
    assert "the time of 2.5" in finding.found
    assert finding.fix == "set `threads: 2` in the job file"
    # With no more cores than that there is nothing to warn of.
    assert machine.cores(around(own_cgroup=own, cores=2)).status == "ok"


def test_no_limit_on_cores(around: Around, tmp_path: Path) -> None:
    groups(tmp_path / "cgroup", {"cpu.max": "max 100000", "cpu/cpu.cfs_quota_us": "-1"})
    for own in ("0::/\n", "4:cpu:/\n", ""):
        finding = machine.cores(around(own_cgroup=own))
        assert (finding.status, "control group" in finding.found) == ("ok", False), own
        assert finding.found == f"4 of {os.cpu_count()} may be used"


def test_memory_is_what_the_control_group_leaves(around: Around, tmp_path: Path) -> None:
    meminfo = "MemTotal:       64000000 kB\nMemAvailable:   48000000 kB\n"
    whole = machine.memory(around(meminfo=meminfo))
    assert (whole.status, whole.found) == ("ok", "49.2 GB free of 65.5 GB")
    assert "24.6 billion parameters in bfloat16" in whole.means
    groups(tmp_path / "cgroup", {"memory.max": "1000000000", "job/memory.max": "max"})
    limited = machine.memory(around(meminfo=meminfo, own_cgroup="0::/job\n"))
    assert limited.status == "warning"
    assert "control group allows 1.0 GB" in limited.found
    assert "0.5 billion" in limited.means
    assert machine.memory(around()).found == "not listed here"


@pytest.mark.parametrize(
    ("env", "status", "phrase"),
    [
        ({}, "ok", "a run sets GOMP_SPINCOUNT=2000"),
        ({"GOMP_SPINCOUNT": "0"}, "ok", "taken as set"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "warning", "threads spin"),
        ({"OMP_THREAD_LIMIT": "2"}, "warning", "no more than 2 threads"),
        ({"OMP_THREAD_LIMIT": "8"}, "ok", "GOMP_SPINCOUNT=2000"),
    ],
)
def test_openmp(around: Around, env: dict[str, str], status: str, phrase: str) -> None:
    finding = machine.openmp(around(env=env))
    assert finding.status == status
    assert phrase in finding.means
    assert (finding.fix is None) == (status == "ok")


@pytest.mark.parametrize(
    ("files", "space", "fix"),
    [
        (20000, -1, None),
        (256, -1, "ulimit -n 4096"),
        (20000, 10**9, "ulimit -v unlimited"),
    ],
)
def test_limits(
    around: Around, monkeypatch: pytest.MonkeyPatch, files: int, space: int, fix: str | None
) -> None:
    known = {resource.RLIMIT_NOFILE: (files, 20000), resource.RLIMIT_AS: (space, -1)}
    monkeypatch.setattr(resource, "getrlimit", known.__getitem__)
    finding = machine.limits(around())
    assert finding.fix == fix
    assert f"{files} open files" in finding.found


def test_shared_memory(around: Around, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = machine.shared_memory(around(), tmp_path / "gone")
    assert (gone.status, "does not exist" in gone.found) == ("ok", True)
    about = os.statvfs(tmp_path)
    for blocks, status in ((2**24 // about.f_frsize, "warning"), (2**34 // about.f_frsize, "ok")):
        fake = os.statvfs_result([*about[:2], blocks, *about[3:]])
        monkeypatch.setattr(os, "statvfs", lambda _, fake=fake: fake)
        assert machine.shared_memory(around(), tmp_path).status == status
