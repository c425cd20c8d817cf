"""The command line as a whole: what it loads, how it ends, what it says of mistakes."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import lorafusion
from lorafusion.cli import COMMANDS, build_app, schema
from lorafusion.errors import DataError

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "numpy", "pydantic", "peft")


def invoke(*args: str) -> Result:
    return CliRunner().invoke(build_app(), list(args))


def python(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *args]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)


def test_module_and_version() -> None:
    command = [sys.executable, "-m", "lorafusion", "--version"]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=True)
    assert done.stdout == f"lorafusion {lorafusion.__version__}\n"


def test_help_names_every_command_and_loads_none() -> None:
    code = (
        "import sys, lorafusion.cli as cli\n"
        "try:\n    cli.main()\n"
        f"finally: print('loaded:', [n for n in {HEAVY} if n in sys.modules])"
    )
    done = python(code, "--help")
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)
    assert "loaded: []" in done.stdout


def test_a_bad_job_file_is_told_before_torch_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("base_model: x\njobs: [{name: a/b}]\nsteps: 3\n")
    code = (
        "import sys, lorafusion.cli as cli\n"
        "try:\n    cli.main()\n"
        "finally: print('loaded:', [n for n in ('torch', 'transformers') if n in sys.modules])"
    )
    done = python(code, "train", str(tmp_path / "run.yaml"))
    assert done.returncode == 2
    said = done.stdout + done.stderr
    assert "loaded: []" in said
    # Every problem, each with its line.
    for place in ("run.yaml:2: jobs[0].name: found", "jobs[0].dataset", "run.yaml:3: steps"):
        assert place in said
    assert "run.yaml: 3 problems" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_own_help(name: str) -> None:
    result = invoke(name, "--help")
    assert result.exit_code == 0, result.output
    assert f"lorafusion {name}" in result.output or f" {name} " in result.output


def test_a_wrong_command_suggests_the_right_one() -> None:
    result = invoke("trian")
    assert result.exit_code == 2
    assert "'train'" in result.stderr


def test_a_users_mistake_is_a_message_without_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> str:
        raise DataError("rows.jsonl:3: is not JSON")

    monkeypatch.setattr(schema, "file_schema", fail)
    result = invoke("schema")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: rows.jsonl:3: is not JSON\n"


def test_our_own_mistake_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> str:
        raise RuntimeError("a bug")

    monkeypatch.setattr(schema, "file_schema", fail)
    result = invoke("schema")
    assert isinstance(result.exception, RuntimeError)


def test_ctrl_c_has_its_own_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(**_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(schema, "file_schema", interrupt)
    assert invoke("schema").exit_code == 130


def test_verbose_logs_what_is_quiet_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    def log(**_: object) -> dict[str, str]:
        logging.getLogger("lorafusion.data").debug("cache %s", "hit")
        logging.getLogger("lorafusion.data").warning("cache %s", "damaged")
        return {}

    monkeypatch.setattr(schema, "file_schema", log)
    assert invoke("schema").stderr == "WARNING lorafusion.data: cache damaged\n"
    assert invoke("-v", "schema").stderr.startswith("DEBUG lorafusion.data: cache hit\n")
