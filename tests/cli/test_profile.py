"""``lorafusion profile``: measures the tiny base for real, and keeps what it found."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from lorafusion.cli import plan, profile
from lorafusion.errors import LorafusionError, ProfileError
from lorafusion.profiling.profile import read_profile

Write = Callable[..., Path]


def _run(command: Callable[..., None], *args: object) -> Result:
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, [str(arg) for arg in args])


def _profile(*args: object) -> Result:
    return _run(profile.command, *args)


@pytest.mark.multiproc
def test_a_profile_is_measured_and_kept(write_run: Write, tmp_path: Path) -> None:
    file = write_run({"name": "a"}, {"name": "b", "adapter": {"r": 4}})
    out = tmp_path / "profile.json"
    result = _profile(file, "--seconds", 1, "--stages", "1,2", "-o", out)
    assert result.exit_code == 0, result.output
    for shown in (
        "held out of the fit",
        "each of 2 layers",
        "recommended: capacity:",
        "one by one",
    ):
        assert shown in result.output
    found = read_profile(out)
    kept = tmp_path / "home" / "profiles" / f"{found.key.name}.json"
    assert read_profile(kept) == found
    assert found.key.targets == ("q_proj", "v_proj")
    assert found.parts(1).layers == 2
    assert found.parts(1).transfer.fixed > 0


@pytest.mark.multiproc
def test_plans_are_made_with_it(write_run: Write, tmp_path: Path) -> None:
    """Those of the same machine, base and number format; any others where told to."""
    file = write_run({"name": "a"})
    options = ("-o", tmp_path / "plan", "--no-compare")
    result = _run(plan.command, file, "--profile", "auto", *options)
    assert isinstance(result.exception, ProfileError)
    assert "no profile of this machine and base is kept" in str(result.exception)

    out = tmp_path / "profile.json"
    assert _profile(file, "--seconds", 1, "-o", out).exit_code == 0
    for source in ("auto", out):
        result = _run(plan.command, file, "--profile", source, *options)
        assert result.exit_code == 0, result.output
        assert "cost model: measured with 1 threads on" in result.output

    other = write_run({"name": "a"}, dtype="float64")
    result = _run(plan.command, other, "--profile", out, *options)
    assert isinstance(result.exception, ProfileError)
    assert "dtype float32, here float64" in str(result.exception)
    result = _run(plan.command, other, "--profile", out, "--any-profile", *options)
    assert result.exit_code == 0, result.output

    result = _run(plan.command, file, "--profile", out, "--device", "h100", *options)
    assert isinstance(result.exception, LorafusionError)
    assert "--profile is of a machine that was measured" in str(result.exception)


@pytest.mark.multiproc
def test_json(write_run: Write, tmp_path: Path) -> None:
    result = _profile(write_run({"name": "a"}), "--seconds", 1, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["profile"]["format"] == 1
    assert document["advice"]["best"]["capacity"] > 0
    assert document["advice"]["best"]["cut"] == [[0, 2]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--stages", "0"), "--stages is '0'; allowed: whole numbers from 1"),
        (("--stages", "1,x"), "--stages is '1,x'"),
        (("--stages", "3"), "3 stages, and the base has 2 layers"),
        (("--device", "tpu"), "--device is 'tpu'; allowed: auto, cpu, cuda"),
        (("--device", "cuda"), "torch sees no GPU here"),
    ],
)
def test_bad_options(write_run: Write, options: tuple[str, ...], message: str) -> None:
    result = _profile(write_run({"name": "a"}), *options)
    assert isinstance(result.exception, LorafusionError)
    assert isinstance(result.exception, ProfileError)
    assert message in str(result.exception)


def test_counted_operations_need_deepspeed(
    write_run: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("deepspeed", "deepspeed.profiling.flops_profiler"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    result = _profile(write_run({"name": "a"}), "--flops")
    assert isinstance(result.exception, ProfileError)
    assert "pip install 'lorafusion[deepspeed]'" in str(result.exception)


@pytest.mark.multiproc
def test_counted_operations(write_run: Write) -> None:
    pytest.importorskip("deepspeed", reason="deepspeed is not installed")
    result = _profile(write_run({"name": "a"}), "--seconds", 1, "--flops")
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.output.splitlines() if line.startswith("layers' linears")]
    counted, formula = line.split()[-2:]
    assert counted == formula
