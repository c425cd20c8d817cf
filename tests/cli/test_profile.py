"""``lorafusion profile``: measures the tiny base for real, and keeps what it found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from lorafusion.cli import profile
from lorafusion.errors import LorafusionError, ProfileError
from lorafusion.profiling.profile import read_profile

Write = Callable[..., Path]


def _profile(*args: object) -> Result:
    app = typer.Typer()
    app.command()(profile.command)
    return CliRunner().invoke(app, [str(arg) for arg in args])


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
