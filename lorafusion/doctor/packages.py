"""Python and its packages, against what our own metadata asks for."""

from __future__ import annotations

import platform
import sys

from lorafusion.doctor.finding import Finding
from lorafusion.doctor.requirements import (
    Requirement,
    allows,
    core,
    installed,
    python_versions,
    requirements,
)
from lorafusion.doctor.surroundings import Surroundings


def python(around: Surroundings) -> Finding:
    """The interpreter's version."""
    del around
    wanted = python_versions()
    found = f"{platform.python_version()} at {sys.executable}"
    if not allows(wanted, platform.python_version()):
        fix = "make an environment with a newer Python, and install lorafusion in it"
        return Finding("missing", found, f"LoRAFusion needs Python {wanted}", fix)
    if sys.maxsize < 2**32:
        return Finding("missing", f"{found}, 32 bits", "torch needs 64 bits", "use a 64-bit Python")
    return Finding("ok", found, f"LoRAFusion needs {wanted}")


def libraries(around: Surroundings) -> Finding:
    """Every package that is needed, but torch, has an allowed version and can be imported."""
    wanted = [requirement for requirement in core() if requirement.name != "torch"]
    bad = [requirement for requirement in wanted if not _suits(requirement)]
    if bad:
        found = "; ".join(f"{each.name} {_state(each)}" for each in bad)
        fix = "pip install " + " ".join(each.pip for each in bad)
        return Finding("missing", found, "training needs them", fix)
    errors = around.facts("libraries")
    if "error" in errors:
        return Finding(
            "missing", str(errors["error"]), "they could not be imported", _again(wanted)
        )
    broken = {name: error for name, error in errors.items() if error is not None}
    if broken:
        found = "; ".join(f"{name} cannot be imported: {error}" for name, error in broken.items())
        again = _again([each for each in wanted if each.name in broken])
        return Finding("missing", found, "training needs them", again)
    found = ", ".join(f"{each.name} {installed(each.name)}" for each in wanted)
    return Finding("ok", found, "all that is needed is there, and can be imported")


def extras(around: Surroundings) -> Finding:
    """Packages that one command or another asks for. They are not imported here."""
    del around
    groups: dict[str, list[Requirement]] = {}
    for requirement in requirements():
        if requirement.extra not in ("", "dev"):
            groups.setdefault(requirement.extra, []).append(requirement)
    lacking = {
        extra: [f"{each.name} {_state(each)}" for each in group if not _suits(each)]
        for extra, group in groups.items()
    }
    lacking = {extra: lines for extra, lines in lacking.items() if lines}
    if lacking:
        found = "; ".join(f"{extra}: {', '.join(lines)}" for extra, lines in lacking.items())
        fix = f"pip install 'lorafusion[{','.join(lacking)}]'"
        return Finding("missing", found, "training does without; `demo` is for `fetch`", fix)
    named = {each.name for group in groups.values() for each in group}
    found = ", ".join(f"{name} {installed(name)}" for name in sorted(named))
    return Finding("ok", found, "the demo can be fetched, and benchmarks run")


def _suits(requirement: Requirement) -> bool:
    version = installed(requirement.name)
    return version is not None and allows(requirement.versions, version)


def _state(requirement: Requirement) -> str:
    version = installed(requirement.name)
    if version is None:
        return "is not installed"
    return f"is {version}, needed is {requirement.versions}"


def _again(wanted: list[Requirement]) -> str:
    return "pip install --force-reinstall " + " ".join(each.pip for each in wanted)
