"""``lorafusion launch``: what it writes where, and what it refuses."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from lorafusion.cli import build_app
from lorafusion.launch.files.tools import TOOLS

Write = Callable[..., Path]
HARD = 'it\'s a "run" $HOME `x` ; é'


@pytest.fixture
def launch(write_run: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """``launch(tool, *options)`` for a good job file with a name that is hard to quote."""
    folder = tmp_path / HARD
    folder.mkdir()
    write_run({"name": "a"}).rename(folder / f"{HARD}.yaml")
    monkeypatch.chdir(folder)

    def run(tool: str, *options: object, file: str = f"{HARD}.yaml") -> Result:
        size = () if "--nodes" in options else ("--nodes", 2, "--gpus", 4)
        arguments = ["launch", file, "--for", tool, *size, *options]
        return CliRunner().invoke(build_app(), [str(one) for one in arguments])

    return run


def scripts(tool: str, text: str) -> list[str]:
    """What of a launch file is bash."""
    if tool in ("slurm", "ssh"):
        return [text]
    made = yaml.safe_load(text)
    return [made["setup"], made["run"]] if tool == "skypilot" else [container(made)["command"][2]]


def container(job: dict) -> dict:
    return job["spec"]["trainer"]


@pytest.mark.parametrize("tool", TOOLS)
def test_the_file_is_what_a_dry_run_prints(launch, tool: str) -> None:
    shown = launch(tool, "--dry-run")
    assert shown.exit_code == 0, shown.output
    assert len(list(Path().iterdir())) == 1
    done = launch(tool, "-o", "new/folder")
    assert done.exit_code == 0, done.output
    (path,) = Path("new/folder").iterdir()
    assert path.read_text() == shown.stdout
    assert path.name == f"{HARD}{TOOLS[tool].suffix}"
    assert "to start: " in done.stdout


@pytest.mark.parametrize("tool", TOOLS)
def test_an_earlier_file_is_kept(launch, tool: str) -> None:
    assert launch(tool).exit_code == 0
    again = launch(tool, "--max-restarts", 9)
    assert again.exit_code == 2
    assert "is there already. Replace it with --overwrite" in again.stderr
    (path,) = Path().glob(f"*{TOOLS[tool].suffix}")
    assert "--max-restarts 3" in path.read_text()
    assert launch(tool, "--max-restarts", 9, "--overwrite").exit_code == 0
    assert "--max-restarts 9" in path.read_text()


@pytest.mark.parametrize("tool", TOOLS)
def test_all_start_torchrun_alike(launch, tool: str) -> None:
    script = scripts(tool, launch(tool, "--run-output", HARD, "--dry-run").stdout)[-1]
    for part in (
        "-m torch.distributed.run",
        "--nnodes 2 --nproc-per-node 4",
        "--max-restarts 3 --shutdown-timeout 600",
        "--rdzv-backend c10d --rdzv-endpoint",
        "--rdzv-id",
        "is_host=",
        "--stages 8",
        "--resume &",
        '[ -z "$stopped" ] || stop',
    ):
        assert part in script


@pytest.mark.parametrize("tool", TOOLS)
def test_names_reach_python_as_they_are(launch, tool: str, tmp_path: Path) -> None:
    """The scripts are bash's, and what is hard to quote comes through them whole."""
    options = ("--workdir", tmp_path / HARD, "--run-output", HARD, "--python", tmp_path / "echo")
    for script in scripts(tool, launch(tool, *options, "--dry-run").stdout):
        checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
        assert not checked.stderr
    (tmp_path / "echo").write_text('#!/bin/sh\nprintf "%s\\n" "$PWD" "$@" > "$ASKED"\n')
    (tmp_path / "echo").chmod(0o755)
    one_host = script
    if tool in ("slurm", "ssh"):  # what it sends to each host
        name = "ONE_NODE" if tool == "slurm" else "ONE_HOST"
        one_host = script.split(f"<<'{name}'\n")[1].split(f"\n{name}\n")[0]
    asked = tmp_path / "asked"
    where = {"ASKED": str(asked), "PATH": "/usr/bin:/bin"}
    held = subprocess.PIPE  # where it ends, ssh's script stops
    with subprocess.Popen(["bash", "-c", one_host], env=where, stdin=held) as process:
        assert process.wait(20) == 0
    words = asked.read_text().splitlines()
    assert words[0] == str(tmp_path / HARD)
    assert words[words.index("lorafusion.launch") + 1] == f"{HARD}.yaml"
    assert words[words.index("--output") + 1] == HARD


def test_slurm_says_what_sbatch_needs(launch) -> None:
    text = launch("slurm", "--dry-run", "--time", "2-0").stdout
    lines = [line[8:] for line in text.splitlines() if line.startswith("#SBATCH ")]
    asked = dict((line + "=").split("=")[:2] for line in lines)
    assert asked["--nodes"] == "2"
    assert asked["--ntasks-per-node"] == "1"
    assert asked["--gpus-per-node"] == "4"
    assert asked["--time"] == "2-0"
    assert asked["--signal"] == "B:USR1@660"
    assert "--requeue" in asked


def test_skypilot_says_what_it_needs(launch) -> None:
    options = ("--gpu-type", "A100-80GB", "--volume", "disk")
    made = yaml.safe_load(launch("skypilot", "--dry-run", *options).stdout)
    assert made["num_nodes"] == 2
    assert made["resources"] == {"accelerators": "A100-80GB:4"}
    assert made["volumes"] == {"/shared": "disk"}
    assert "cd /shared" in made["run"]


def test_kubeflow_says_what_it_needs(launch) -> None:
    options = ("--image", "registry/image:1", "--volume", "claim")
    made = yaml.safe_load(launch("kubeflow", "--dry-run", *options).stdout)
    assert (made["apiVersion"], made["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    trainer = container(made)
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (2, 4)
    assert trainer["image"] == "registry/image:1"
    assert trainer["resourcesPerNode"]["limits"] == {"nvidia.com/gpu": 4}
    assert '"claimName": "claim"' in json.dumps(made)


def test_ssh_takes_hosts_from_both_sides(launch, tmp_path: Path) -> None:
    assert "hosts=(a me@b)" in launch("ssh", "--hosts", "a, me@b", "--dry-run").stdout
    assert launch("ssh").exit_code == 0
    (path,) = Path().glob("*.ssh.sh")
    for names, said in (((), "0 hosts; allowed: 2"), (("a", "$(b)"), "'$(b)' is no host's name")):
        done = subprocess.run(["bash", path, *names], capture_output=True, text=True, timeout=20)
        assert done.returncode == 2
        assert said in done.stderr


@pytest.mark.parametrize(
    ("tool", "options", "message"),
    [
        ("lsf", (), "--for is 'lsf'; allowed: slurm, skypilot, kubeflow, ssh."),
        ("slurm", ("--stages", 4), "--stages is 4, and --nodes 2 with --gpus 4 are 8 ranks"),
        ("slurm", ("--replicas", 3), "--replicas is 3, and --nodes 2 with --gpus 4 are 8 ranks"),
        ("ssh", ("--hosts", "a,b,c"), "--hosts names 3, and --nodes is 2"),
        ("ssh", ("--hosts", "a,a"), "--hosts names a more than once"),
        ("ssh", ("--hosts", "a,b;c"), "--hosts names 'b;c'"),
        ("ssh", ("--hosts", "a,-oProxyCommand=x"), "--hosts names '-oProxyCommand=x'"),
        ("slurm", ("--hosts", "a,b"), "--hosts is given, which means nothing with --for slurm"),
        ("slurm", ("--time", "10:00"), "--time is '10:00'; allowed: MINUTES"),
        ("slurm", ("--time", "soon"), "--time is 'soon'"),
        ("kubeflow", ("--image", "a b"), "--image is 'a b'; allowed: letters"),
        ("slurm", ("--run-output", "a\nb"), "--run-output is 'a\\nb'; allowed: printable"),
        ("slurm", ("--workdir", "here"), "--workdir is 'here'; allowed: a path from / on"),
        ("slurm", ("--nodes", 0, "--gpus", 4), "should be greater than or equal to 1"),
        ("slurm", ("--nodes", 1, "--gpus", 0), "should be greater than or equal to 1"),
    ],
)
def test_what_is_refused(launch, tool: str, options: tuple[object, ...], message: str) -> None:
    result = launch(tool, *options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split()).replace("│ ", "")
    assert len(list(Path().iterdir())) == 1


def test_bad_job_files_are_refused(launch) -> None:
    Path("bad.yaml").write_text("base_model: x\njobs: []\nsteps: 3\n")
    for file, message in (("bad.yaml", "bad.yaml:3: steps"), ("none.yaml", "none.yaml")):
        result = launch("slurm", file=file)
        assert result.exit_code == 2
        assert message in result.stderr
    assert not list(Path().glob("*.sbatch"))
