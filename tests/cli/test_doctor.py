"""``lorafusion doctor`` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from lorafusion.cli import build_app, doctor
from lorafusion.doctor.finding import Check, Finding
from lorafusion.doctor.finding import Result as Checked
from lorafusion.doctor.surroundings import Surroundings

KEYS = {"section", "name", "needed", "status", "found", "means", "fix"}


def check(name: str, status: Any, *, needed: bool = False, fix: str | None = None) -> Check:
    finding = Finding(status, f"{name} found [x]", f"{name} means", fix)
    return Check("Part", name, lambda _: finding, needed=needed)


GOOD = check("good", "ok", needed=True)
ODD = check("odd", "warning", fix="turn it")
SPARE = check("spare", "missing", fix="pip install spare")
GONE = check("gone", "missing", needed=True, fix="pip install gone")


def invoke(*args: str) -> Result:
    return CliRunner().invoke(build_app(), ["doctor", *args])


def use(monkeypatch: pytest.MonkeyPatch, *checks: Check) -> None:
    monkeypatch.setattr(doctor, "CHECKS", checks)


def test_training_can_run_beside_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, GOOD, ODD, SPARE)
    result = invoke()
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "ok        good: good found [x]; good means",
        "warning   odd: odd found [x]; odd means",
        "          to mend odd: turn it",
        "optional  spare: spare found [x]; spare means",
        "          to mend spare: pip install spare",
        "Training can run here; look at odd",
    ]


def test_what_is_needed_and_missing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, GOOD, GONE)
    result = invoke()
    assert result.exit_code == 1
    assert "missing   gone: gone found" in result.stdout
    assert result.stdout.endswith("Training cannot run here: gone\n")


@pytest.mark.parametrize(("checks", "ok"), [((GOOD, SPARE), True), ((GONE,), False)])
def test_json(monkeypatch: pytest.MonkeyPatch, checks: tuple[Check, ...], ok: bool) -> None:
    use(monkeypatch, *checks)
    result = invoke("--json")
    answer = json.loads(result.stdout)
    assert answer.keys() == {"ok", "version", "checks"}
    assert (answer["ok"], result.exit_code) == (ok, 0 if ok else 1)
    assert [each["name"] for each in answer["checks"]] == [each.name for each in checks]
    assert all(each.keys() == KEYS for each in answer["checks"])
    assert answer["checks"][-1]["status"] == "missing"


def test_the_self_test_runs_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, GOOD)
    monkeypatch.setattr(doctor, "SELF_TEST", check("self_test", "missing", needed=True))
    assert invoke().exit_code == 0
    result = invoke("--self-test")
    assert (result.exit_code, "self_test found" in result.stdout) == (1, True)


def test_a_terminal_gets_sections(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(force_terminal=True, width=60, record=True, highlight=False)
    here = Surroundings.here(Path("runs"))
    results = [Checked(each, each.look(here)) for each in (GOOD, ODD, SPARE, GONE)]
    console.print(doctor.render(results))
    capsys.readouterr()
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    assert lines[0] == "Part"
    assert [line[2] for line in lines if line[2:3] in "✓!–✗" and line[2:3]] == list("✓!–✗")
    assert "good found [x]" in lines[1]  # not taken for rich's markup
    assert lines[-1] == "Training cannot run here: gone"


def test_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every real check, without a network: whatever is found, doctor ends well."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("LORAFUSION_HOME", str(tmp_path / "home"))
    result = invoke("--json", "--output", str(tmp_path / "runs"))
    answer = json.loads(result.stdout)
    assert answer["ok"], result.stdout  # these tests train
    assert {each["name"] for each in answer["checks"]} >= {"torch", "cpu", "hub", "compiler"}
    for each in answer["checks"]:
        assert "could not be looked at" not in each["found"], each
        assert "\n" not in each["found"] + each["means"] + (each["fix"] or ""), each
    assert not list(tmp_path.iterdir())
