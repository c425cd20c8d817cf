"""What the package's own metadata asks for, and what is installed of it."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import lorafusion

_OTHER_NAMES = {"pyyaml": "yaml"}


@dataclass(frozen=True)
class Requirement:
    """One package with the versions allowed, and the extra that asks for it ("": always)."""

    name: str
    versions: str
    extra: str

    @property
    def module(self) -> str:
        """What it is imported as."""
        return _OTHER_NAMES.get(self.name, self.name.replace("-", "_"))

    @property
    def pip(self) -> str:
        """As pip takes it on a command line."""
        return f"'{self.name}{self.versions}'"


def core() -> list[Requirement]:
    """What LoRAFusion cannot run without."""
    return [requirement for requirement in requirements() if not requirement.extra]


def requirements() -> list[Requirement]:
    """All that is asked for, extras included."""
    try:
        lines = metadata.requires("lorafusion") or []
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        project = _project()
        extras: dict[str, list[str]] = project["optional-dependencies"]
        wanted = [_parse(line) for line in project["dependencies"]]
        return wanted + [_parse(line, name) for name in extras for line in extras[name]]
    return [_parse(line) for line in lines]


def python_versions() -> str:
    """Which versions of Python are allowed."""
    try:
        return str(metadata.metadata("lorafusion")["Requires-Python"])
    except metadata.PackageNotFoundError:
        return str(_project()["requires-python"])


def installed(name: str) -> str | None:
    """The version of a package; None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def allows(versions: str, version: str) -> bool:
    """Whether ``version`` is within ``versions``, such as ``>=2.13``."""
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(versions).contains(version, prereleases=True)


def _project() -> dict[str, Any]:
    file = Path(lorafusion.__file__).parents[1] / "pyproject.toml"
    return tomllib.loads(file.read_text(encoding="utf-8"))["project"]


def _parse(line: str, extra: str = "") -> Requirement:
    from packaging.requirements import Requirement as Parsed

    parsed = Parsed(line)
    for marker in str(parsed.marker or "").split(" and "):
        if marker.startswith("extra =="):
            extra = marker.split('"')[1]
    return Requirement(parsed.name, str(parsed.specifier), extra)
