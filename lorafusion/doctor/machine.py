"""Processor, cores, memory, threads and limits."""

from __future__ import annotations

import math
import os
import platform
import resource
from collections.abc import Iterator
from pathlib import Path

from lorafusion.doctor.finding import Finding
from lorafusion.doctor.surroundings import Surroundings

GB = 10**9
_WIDE = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "sve", "bf16")
_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}
_NO_LIMIT = 2**60  # version 1 of cgroups says "no limit" with a number like this one


def cpu(around: Surroundings) -> Finding:
    """Model, and the instructions that decide about speed."""
    fields = _cpu_fields(around.cpuinfo)
    model = fields.get("model name") or platform.processor() or platform.machine()
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    if not flags:
        return Finding("ok", model, "its instructions are not listed here, so nothing is known")
    seen = [flag for flag in _WIDE if flag in flags]
    found = f"{model}: {', '.join(seen) or 'none of ' + ', '.join(_WIDE)}"
    if "amx_tile" in flags and not around.amx():
        return Finding(
            "warning",
            f"{found}; the kernel refuses AMX",
            "bfloat16 products run without the matrix unit",
            "use Linux 5.16 or newer, outside of a sandbox that filters arch_prctl",
        )
    if flags & _BFLOAT16:
        return Finding("ok", found, "products in bfloat16 run on the processor's own instructions")
    means = "bfloat16 halves the base's memory, but is emulated: float32 may be faster"
    return Finding("ok", found, means)


def cores(around: Surroundings) -> Finding:
    """Cores by affinity, against the time that the control group allows."""
    limit = _core_limit(around)
    found = f"{around.cores} of {os.cpu_count()} may be used"
    if limit is None:
        return Finding("ok", found, f"a run takes {around.cores} threads unless it says `threads`")
    found += f"; the control group allows the time of {limit:g}"
    if limit >= around.cores:
        return Finding("ok", found, f"a run takes {around.cores} threads unless it says `threads`")
    return Finding(
        "warning",
        found,
        f"a run would take {around.cores} threads, which are stopped in turns",
        f"set `threads: {max(1, math.floor(limit))}` in the job file",
    )


def memory(around: Surroundings) -> Finding:
    """Memory that is free, within the control group's limit."""
    fields = _fields(around.meminfo)
    if "MemTotal" not in fields:
        return Finding("ok", "not listed here", "nothing is known of it")
    total, free = (_kilobytes(fields.get(name, "0")) for name in ("MemTotal", "MemAvailable"))
    found = f"{free / GB:.1f} GB free of {total / GB:.1f} GB"
    limit = _memory_limit(around)
    if limit is not None and limit < total:
        found += f"; the control group allows {limit / GB:.1f} GB"
        free = min(free, limit)
    means = f"room for the weights of {free / 2 / GB:.1f} billion parameters in bfloat16, "
    means += "half as many in float32, activations not counted"
    if free < 2 * GB:
        fix = "close other programs, raise the limit, or choose a smaller base"
        return Finding("warning", found, means, fix)
    return Finding("ok", found, means)


def openmp(around: Surroundings) -> Finding:
    """How OpenMP's threads wait, and how many there are."""
    names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_PROC_BIND")
    set_here = [f"{name}={around.env[name]}" for name in names if name in around.env]
    found = ", ".join(set_here) or "nothing set"
    if around.env.get("OMP_WAIT_POLICY", "").lower() == "active":
        means = "threads spin while they wait: beside other work a step takes several times as long"
        return Finding("warning", found, means, "unset OMP_WAIT_POLICY")
    limit = around.env.get("OMP_THREAD_LIMIT", "")
    if limit.isdecimal() and int(limit) < around.cores:
        means = f"no more than {limit} threads can run, whatever the job file says"
        return Finding("warning", f"OMP_THREAD_LIMIT={limit}", means, "unset OMP_THREAD_LIMIT")
    if "OMP_WAIT_POLICY" in around.env or "GOMP_SPINCOUNT" in around.env:
        means = "taken as set; a run pins its own number of threads"
    else:
        means = "a run sets GOMP_SPINCOUNT=2000, and pins its own number of threads"
    return Finding("ok", found, means)


def limits(around: Surroundings) -> Finding:
    """Open files, and memory as a shell limits it."""
    del around
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    found = f"{_count(soft)} open files (up to {_count(hard)})"
    if space != resource.RLIM_INFINITY:
        means = "torch maps more than it uses, and may fail to allocate"
        return Finding(
            "warning", f"{found}, {space / GB:.1f} GB of addresses", means, "ulimit -v unlimited"
        )
    if soft != resource.RLIM_INFINITY and soft < 1024:
        means = "each job keeps files open, so many jobs may run out of them"
        return Finding("warning", found, means, "ulimit -n 4096")
    return Finding("ok", found, "enough for hundreds of jobs")


def shared_memory(around: Surroundings, folder: Path = Path("/dev/shm")) -> Finding:
    """Room that processes share."""
    del around
    if not folder.is_dir():
        return Finding("ok", f"{folder} does not exist", "only runs of several processes use it")
    about = os.statvfs(folder)
    size = about.f_frsize * about.f_blocks
    found = f"{size / GB:.2f} GB at {folder}"
    if size < GB:
        means = "runs of one process do without; several processes, such as NCCL's, may fail"
        fix = f"mount -o remount,size=8g {folder}, or start the container with --shm-size=8g"
        return Finding("warning", found, means, fix)
    return Finding("ok", found, "enough for runs of several processes; one process does without")


def _cpu_fields(cpuinfo: str) -> dict[str, str]:
    return _fields(cpuinfo.split("\n\n")[0])


def _fields(text: str) -> dict[str, str]:
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def _kilobytes(value: str) -> int:
    return int(value.split()[0]) * 1024


def _count(limit: int) -> str:
    return "any number of" if limit == resource.RLIM_INFINITY else str(limit)


def _core_limit(around: Surroundings) -> float | None:
    """Cores' worth of time, by the tightest control group above this process."""
    found: list[float] = []
    for folder in _own_groups(around):
        for name in ("cpu.max", "cpu.cfs_quota_us"):
            quota, *period = _words(folder / name)
            period = period or _words(folder / "cpu.cfs_period_us")
            if quota not in ("max", "-1", "") and period[0]:
                found.append(int(quota) / int(period[0]))
    return min(found, default=None)


def _memory_limit(around: Surroundings) -> int | None:
    found: list[int] = []
    for folder in _own_groups(around):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = _words(folder / name)[0]
            if limit.isdecimal() and int(limit) < _NO_LIMIT:
                found.append(int(limit))
    return min(found, default=None)


def _own_groups(around: Surroundings) -> Iterator[Path]:
    """The folders of the groups that this process is in, of both versions, up to the root."""
    for line in around.own_cgroup.splitlines():
        _, controllers, path = line.split(":", 2)
        roots = [around.cgroup_root / name for name in {controllers, *controllers.split(",")}]
        for root in roots:
            group = root / path.lstrip("/")
            # In a container the path may be the host's: only the root is there then.
            for folder in (group, *group.parents):
                if folder.is_relative_to(root):
                    yield folder


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split() or [""]
    except OSError:
        return [""]
