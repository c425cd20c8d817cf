"""``lorafusion plan``: a job file becomes a plan and its drawings, without training or weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from lorafusion.cli import plan
from lorafusion.errors import LorafusionError
from lorafusion.planner.plan import Plan

Write = Callable[..., Path]


def _plan(*args: object) -> Result:
    app = typer.Typer()
    app.command()(plan.command)
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_a_plan_and_its_drawings(write_run: Write, tmp_path: Path) -> None:
    file = write_run({"name": "a"}, {"name": "b", "max_steps": 5, "adapter": {"r": 4}})
    for weights in tmp_path.glob("**/*.safetensors"):
        weights.unlink()  # no weights are needed
    out = tmp_path / "plan"
    result = _plan(file, "--stages", 2, "--device", "h100", "-o", out)
    assert result.exit_code == 0, result.output
    for shown in ("bubble", "makespan", "layers of the stages: 0-0, 1-1", "mLoRA", "not measured"):
        assert shown in result.output
    made = Plan.from_json((out / "plan.json").read_text())
    assert made.limits.stages == 2
    steps = [pair for place in made.places if place.kind == "train" for pair in place.completes]
    assert sorted(steps) == [("a", 1), ("a", 2), *(("b", step) for step in range(1, 6))]
    assert any(place.kind == "eval" for place in made.places)
    assert (out / "gantt.png").read_bytes().startswith(b"\x89PNG")
    assert "</html>" in (out / "gantt.html").read_text()
    assert json.loads((out / "trace.json").read_text())["traceEvents"]


def test_the_file_s_capacity_is_the_default(write_run: Write, tmp_path: Path) -> None:
    file = write_run({"name": "a"})
    outputs = [
        _plan(file, "-o", tmp_path / str(number), "--no-compare", *options).output
        for number, options in enumerate(((), ("--capacity", "64"), ("--capacity", "auto")))
    ]
    assert "capacity: 96 tokens" in outputs[0]
    assert "capacity: 64 tokens" in outputs[1]
    assert "mLoRA" not in outputs[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--device", "tpu"), "device 'tpu' is unknown; allowed: a100"),
        (("--capacity", "0"), "--capacity is '0'; allowed: auto"),
        (("--capacity", "many"), "--capacity is 'many'"),
        (("--stages", "3"), "3 stages for 2 layers"),
        (("--capacity", "4"), "job 'a', sample"),
    ],
)
def test_what_cannot_be_planned(
    write_run: Write, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    result = _plan(write_run({"name": "a"}), "-o", tmp_path / "out", *options)
    assert isinstance(result.exception, LorafusionError)
    assert message in str(result.exception)
    assert not (tmp_path / "out").exists()


def _config_alone(tiny_base: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "config-alone"
    folder.mkdir()
    (folder / "config.json").write_text((tiny_base / "config.json").read_text())
    return folder


def test_what_if_needs_a_config_alone(write_run: Write, tiny_base: Path, tmp_path: Path) -> None:
    folder = _config_alone(tiny_base, tmp_path)
    file = write_run({"name": "a"}, {"name": "b", "max_steps": 5}, base_model=str(folder))
    out = tmp_path / "plan"
    options = ("--device", "h100", "--nodes", 2, "--gpus", 2, "--tokenizer", tiny_base, "-o", out)
    result = _plan(file, *options)
    assert result.exit_code == 0, result.output
    for shown in ("tokens/s", "best", "assumed of a h100", "not modelled", "memory of a stage"):
        assert shown in result.output
    found = json.loads((out / "what-if.json").read_text())
    pairs = {(c["layout"]["stages"], c["layout"]["replicas"]) for c in found["candidates"]}
    assert pairs == {(1, 4), (2, 2)}
    made = Plan.from_json((out / "plan.json").read_text()).limits
    assert (made.stages, made.replicas) in pairs
    assert (out / "gantt.html").exists()


def test_what_if_without_a_tokenizer(write_run: Write, tiny_base: Path, tmp_path: Path) -> None:
    file = write_run({"name": "a"}, base_model=str(_config_alone(tiny_base, tmp_path)))
    result = _plan(file, "--gpus", 2, "-o", tmp_path / "out")
    assert isinstance(result.exception, LorafusionError)
    assert "name another with --tokenizer" in str(result.exception)


def test_what_if_finds_the_stages_itself(write_run: Write, tmp_path: Path) -> None:
    result = _plan(write_run({"name": "a"}), "--gpus", 2, "--stages", 2, "-o", tmp_path / "out")
    assert isinstance(result.exception, LorafusionError)
    assert "are found by --nodes and --gpus" in str(result.exception)
