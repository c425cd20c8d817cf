"""Compilers, and what else is run rather than imported."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path

from lorafusion.doctor.finding import Finding
from lorafusion.doctor.requirements import installed
from lorafusion.doctor.surroundings import Surroundings
from lorafusion.models.zero_package import KNOWN

_COMPILERS = ("c++", "g++", "clang++")
# By package manager: a C++ compiler, and the headers of the system's Python.
_INSTALL = {
    "apt-get": ("apt-get install g++", "apt-get install python3-dev"),
    "dnf": ("dnf install gcc-c++", "dnf install python3-devel"),
    "yum": ("yum install gcc-c++", "yum install python3-devel"),
    "apk": ("apk add g++ musl-dev", "apk add python3-dev"),
    "zypper": ("zypper install gcc-c++", "zypper install python3-devel"),
    "pacman": ("pacman -S gcc", "pacman -S python"),
    "brew": ("xcode-select --install", "brew install python"),
}
_MEANS = "the CPU kernels are built with it; without, results are the same, and slower"
_PROGRAM = "#include <vector>\nint main() { return std::vector<int>().size(); }\n"


def compiler(around: Surroundings) -> Finding:
    """A C++ compiler that compiles, and Python's headers."""
    path = around.env.get("PATH", "")
    named = shlex.split(around.env.get("CXX", ""))
    command = named or [name for name in _COMPILERS if shutil.which(name, path=path)][:1]
    if not command:
        return Finding("warning", "no C++ compiler is on the PATH", _MEANS, _install(path, 0))
    program = shutil.which(command[0], path=path)
    if program is None:
        found = f"CXX names {command[0]}, which is not on the PATH"
        return Finding("warning", found, _MEANS, "unset CXX, or install what it names")
    version = _first_line([program, "--version"])
    error = _compile_error([program, *command[1:]])
    if error:
        found = f"{version}, which cannot compile: {error}"
        return Finding("warning", found, _MEANS, _install(path, 0))
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        found = f"{version}; Python's headers are missing"
        means = "triton and torch.compile cannot build what they load; training here does without"
        return Finding("warning", found, means, _install(path, 1))
    return Finding("ok", f"{version}, which compiles; Python's headers are there", _MEANS)


def deepspeed(around: Surroundings) -> Finding:
    """DeepSpeed, which a job file may ask for, and whether its version is one that was tried."""
    del around
    version = installed("deepspeed")
    means = "`parallel: {zero: 3}` cuts a base over ranks with it, and compiles nothing"
    if version is None:
        fix = "pip install 'lorafusion[zero]'"
        return Finding("missing", "deepspeed is not installed", f"not needed: {means}", fix)
    if not version.startswith(f"{KNOWN}."):
        found = f"deepspeed {version}, which was not tried; {KNOWN}.* were"
        return Finding("warning", found, means, f"pip install 'deepspeed=={KNOWN}.*'")
    return Finding("ok", f"deepspeed {version}", means)


def _install(path: str, which: int) -> str:
    for manager, commands in _INSTALL.items():
        if shutil.which(manager, path=path):
            return commands[which]
    return ("install g++ or clang++", "install the headers of this Python")[which]


def _first_line(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return (done.stdout.strip() or done.stderr.strip() or command[0]).splitlines()[0]


def _compile_error(command: list[str]) -> str | None:
    done = subprocess.run(
        [*command, "-x", "c++", "-fsyntax-only", "-"],
        input=_PROGRAM,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return lines[0] if lines else f"it ended with code {done.returncode}"
