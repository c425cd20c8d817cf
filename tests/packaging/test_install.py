"""Wheel, sdist, ``pip install .`` and ``pip install -e .``, each into a throwaway environment.

Nothing is downloaded: builds see only the setuptools that runs the tests, and the installed package
sees the dependencies that run the tests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOP_LEVEL = ("kernels", "planner", "launch", "jobs")
SITE_PACKAGES = Path(sysconfig.get_path("purelib"))
NOT_SOURCE = (".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "*.so")

# Run away from the checkout, so that only what was installed can be found.
CHECK = """
import importlib.util
from importlib.resources import files
for name in ("kernels", "planner", "launch", "jobs"):
    assert importlib.util.find_spec(name) is None, f"{name} is a top-level package"
for name in ("kernels.layout", "models", "training"):
    assert importlib.util.find_spec(f"lorafusion.{name}"), f"lorafusion.{name} is missing"
import shutil
import lorafusion.jobs.schema
import lorafusion.planner.plan
from lorafusion.kernels.native import library
built = [library._path(name) for name in library.BUILDS.values()]
assert any(built) or not any(map(shutil.which, ("cc", "gcc", "clang"))), "the loops are missing"
assert files("lorafusion").joinpath("py.typed").is_file()
assert "<html" in files("lorafusion.plans").joinpath("gantt.html").read_text()
assert "jobs:" in files("lorafusion.jobs").joinpath("examples/demo.yaml").read_text()
print(lorafusion.__file__)
"""


def run(*command: str | Path, cwd: Path, pythonpath: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(pythonpath), "PIP_NO_INDEX": "1"}
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, so that builds leave nothing in it."""
    folder = tmp_path_factory.mktemp("source") / "lorafusion"
    ignore = shutil.ignore_patterns(*NOT_SOURCE)
    return Path(shutil.copytree(ROOT, folder, symlinks=True, ignore=ignore))


def link_packages(folder: Path, wanted: Callable[[str], bool]) -> Path:
    for found in SITE_PACKAGES.iterdir():
        if wanted(found.name):
            (folder / found.name).symlink_to(found)
    return folder


@pytest.fixture(scope="module")
def build_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with setuptools and nothing else."""
    folder = tmp_path_factory.mktemp("build_path")
    return link_packages(folder, lambda name: name.startswith(("setuptools", "_distutils_hack")))


@pytest.fixture(scope="module")
def run_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the tests run with, but not with an editable lorafusion."""
    folder = tmp_path_factory.mktemp("run_path")
    return link_packages(folder, lambda name: not name.startswith(("lorafusion", "__editable__")))


@pytest.fixture(scope="module")
def dist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel, the wheel built from the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source]
    run(*build, cwd=folder, pythonpath=Path())
    return folder


def install(folder: Path, *what: str | Path, build_path: Path) -> Path:
    """Install into a fresh environment in ``folder`` and return its Python."""
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    options = ["--no-deps", "--no-build-isolation"]
    run(*pip, *options, *what, cwd=folder, pythonpath=build_path)
    return python


def only(dist: Path, pattern: str) -> Path:
    (file,) = dist.glob(pattern)
    return file


def modules(folder: Path) -> set[str]:
    """The Python files under ``folder``, not following links."""
    return {
        str((Path(parent) / file).relative_to(folder))
        for parent, _, files in os.walk(folder)
        for file in files
        if file.endswith(".py")
    }


def test_wheel_holds_every_module_and_no_top_level_folder(dist: Path, source: Path) -> None:
    with zipfile.ZipFile(only(dist, "*.whl")) as wheel:
        names = set(wheel.namelist())
    expected = {f"lorafusion/{name}" for name in modules(source / "lorafusion")}
    for folder in TOP_LEVEL:
        expected |= {f"lorafusion/{folder}/{name}" for name in modules(source / folder)}
    assert {name for name in names if name.endswith(".py")} == expected
    assert {"lorafusion/py.typed", "lorafusion/jobs/examples/demo.yaml"} <= names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"lorafusion"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_sdist_mirrors_the_checkout(dist: Path) -> None:
    with tarfile.open(only(dist, "*.tar.gz")) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {
        "Makefile",
        "constraints.txt",
        "LICENSE",
        "jobs/examples/demo.yaml",
        "kernels/layout.py",
        "kernels/native/lora.cpp",
        "tests/conftest.py",
        "tests/packaging/test_install.py",
    } <= names


@pytest.mark.parametrize("kind", ["*.whl", "*.tar.gz"])
def test_installs_from_wheel_and_sdist(
    kind: str, dist: Path, build_path: Path, run_path: Path, tmp_path: Path
) -> None:
    python = install(tmp_path, only(dist, kind), build_path=build_path)
    where = run(python, "-c", CHECK, cwd=tmp_path, pythonpath=run_path)
    assert Path(where.strip()).is_relative_to(tmp_path / "venv")
    script = python.with_name("lorafusion")
    assert "fetch" in run(script, "--help", cwd=tmp_path, pythonpath=run_path)


def test_pip_install_of_the_folder(
    source: Path, build_path: Path, run_path: Path, tmp_path: Path
) -> None:
    python = install(tmp_path, source, build_path=build_path)
    where = run(python, "-c", CHECK, cwd=tmp_path, pythonpath=run_path)
    assert Path(where.strip()).is_relative_to(tmp_path / "venv")


def test_editable_install_sees_new_files(
    source: Path, build_path: Path, run_path: Path, tmp_path: Path
) -> None:
    python = install(tmp_path, "--editable", source, build_path=build_path)
    where = run(python, "-c", CHECK, cwd=tmp_path, pythonpath=run_path)
    assert Path(where.strip()) == source / "lorafusion" / "__init__.py"

    new = source / "planner" / "brand_new.py"
    new.write_text("answer = 42\n")
    try:
        code = "import lorafusion.planner.brand_new as m; print(m.answer)"
        assert run(python, "-c", code, cwd=tmp_path, pythonpath=run_path).strip() == "42"
    finally:
        new.unlink()
