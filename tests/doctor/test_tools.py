"""Compilers and packages, with other paths and metadata than this machine's."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path

import pytest

from lorafusion.doctor import packages, requirements, tools
from lorafusion.doctor.surroundings import Surroundings

Around = Callable[..., Surroundings]


def program(folder: Path, name: str, text: str) -> str:
    file = folder / name
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return str(folder)


def test_no_compiler_on_the_path(around: Around, tmp_path: Path) -> None:
    for path in ("", str(tmp_path)):
        finding = tools.compiler(around(env={"PATH": path}))
        assert (finding.status, finding.fix) == ("warning", "install g++ or clang++")
    program(tmp_path, "dnf", "")
    finding = tools.compiler(around(env={"PATH": str(tmp_path)}))
    assert finding.fix == "dnf install gcc-c++"


def test_a_compiler_that_cannot_compile(around: Around, tmp_path: Path) -> None:
    path = program(
        tmp_path, "c++", '[ "$1" = --version ] && echo mine 1.0 || { echo no vector >&2; exit 1; }'
    )
    finding = tools.compiler(around(env={"PATH": path}))
    assert finding.status == "warning"
    assert finding.found == "mine 1.0, which cannot compile: no vector"


def test_cxx_is_obeyed(around: Around, tmp_path: Path) -> None:
    path = program(tmp_path, "mine", '[ "$1" = --version ] && echo mine 2.0; exit 0')
    good = tools.compiler(around(env={"PATH": path, "CXX": "mine -O2"}))
    assert good.found.startswith("mine 2.0")
    gone = tools.compiler(around(env={"PATH": path, "CXX": "other"}))
    assert (gone.status, "other, which is not on the PATH" in gone.found) == ("warning", True)


def test_the_compiler_of_this_machine_is_tried(around: Around) -> None:
    finding = tools.compiler(around(env=dict(os.environ)))
    if finding.status == "ok":
        assert "which compiles" in finding.found


def test_deepspeed_is_of_a_version_that_was_tried(
    around: Around, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tools, "installed", {"deepspeed": None}.get)
    assert tools.deepspeed(around()).status == "missing"
    monkeypatch.setattr(tools, "installed", {"deepspeed": "0.20.0"}.get)
    assert tools.deepspeed(around()).fix == "pip install 'deepspeed==0.19.*'"
    monkeypatch.setattr(tools, "installed", {"deepspeed": "0.19.8"}.get)
    assert tools.deepspeed(around()).status == "ok"  # without ninja on this PATH


def test_the_bounds_are_those_of_the_metadata() -> None:
    core = {each.name: each for each in requirements.core()}
    assert core["torch"].versions.startswith(">=")
    assert core["pyyaml"].module == "yaml"
    assert core.keys() >= {"transformers", "datasets", "safetensors", "tokenizers"}
    assert "peft" not in core
    assert {each.extra for each in requirements.requirements() if each.name == "peft"} >= {"bench"}
    assert requirements.python_versions() == ">=3.11"


def test_metadata_and_the_checkouts_file_are_read_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["torch>=2.13", 'peft>=0.21; extra == "bench"', "jinja2"]
    monkeypatch.setattr(requirements.metadata, "requires", lambda _: lines)
    installed = requirements.requirements()
    project = {
        "dependencies": ["torch>=2.13", "jinja2"],
        "optional-dependencies": {"bench": ["peft>=0.21"]},
    }

    def fail(_: str) -> None:
        raise requirements.metadata.PackageNotFoundError

    monkeypatch.setattr(requirements.metadata, "requires", fail)
    monkeypatch.setattr(requirements, "_project", lambda: project)
    assert sorted(map(str, requirements.requirements())) == sorted(map(str, installed))


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The installed packages, for a test to change."""
    known = {each.name: requirements.installed(each.name) for each in requirements.requirements()}
    known = {name: version or "99.0" for name, version in known.items()}
    monkeypatch.setattr(packages, "installed", known.get)
    return known


def test_a_package_below_our_bound(around: Around, versions: dict[str, str]) -> None:
    versions["transformers"] = "4.57.1"
    del versions["safetensors"]
    finding = packages.libraries(around())
    assert finding.status == "missing"
    assert "transformers is 4.57.1, needed is >=" in finding.found
    assert "safetensors is not installed" in finding.found
    assert finding.fix is not None
    assert finding.fix.startswith("pip install 'safetensors>=")
    assert "'transformers>=" in finding.fix


def test_a_package_that_cannot_be_imported(around: Around, versions: dict[str, str]) -> None:
    answer = dict.fromkeys(versions) | {"tokenizers": "ImportError: no symbol"}
    finding = packages.libraries(around({"libraries": answer}))
    assert finding.status == "missing"
    assert finding.found == "tokenizers cannot be imported: ImportError: no symbol"
    assert "--force-reinstall 'tokenizers" in (finding.fix or "")
    crashed = packages.libraries(around({"libraries": {"error": "ended by SIGILL"}}))
    assert (crashed.status, "SIGILL" in crashed.found) == ("missing", True)
    good = packages.libraries(around({"libraries": dict.fromkeys(versions)}))
    assert good.status == "ok"


def test_extras(around: Around, versions: dict[str, str]) -> None:
    assert packages.extras(around()).status == "ok"
    del versions["peft"]
    finding = packages.extras(around())
    assert (finding.status, finding.fix) == ("missing", "pip install 'lorafusion[bench]'")


def test_a_python_that_is_too_old(around: Around, monkeypatch: pytest.MonkeyPatch) -> None:
    assert packages.python(around()).status == "ok"
    monkeypatch.setattr(platform, "python_version", lambda: "3.10.14")
    finding = packages.python(around())
    assert (finding.status, "needs Python >=3.11" in finding.means) == ("missing", True)
