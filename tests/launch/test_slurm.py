"""The script of ``lorafusion launch --for slurm`` on a real Slurm of two nodes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.launch.conftest import PATIENCE_S, ROOT, wait_until, write_run
from tests.launch.hosts import INTERFACE, RUN_S, Host, two_hosts, why_not

_PATH = f"{os.environ['PATH']}:/usr/sbin"
_MISSING = [
    name for name in ("slurmctld", "slurmd", "sbatch") if not shutil.which(name, path=_PATH)
]
WHY_NOT = why_not() or (f"Slurm is not installed: no {', '.join(_MISSING)}" if _MISSING else "")
pytestmark = [
    pytest.mark.multiproc,
    pytest.mark.hosts,
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
]
STEPS = 30
CONFIGURATION = """\
ClusterName=test
SlurmctldHost=host-a({a})
AuthType=auth/none
CredType=cred/none
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
GresTypes=gpu
SlurmdParameters=config_overrides
NodeName=host-a NodeAddr={a} CPUs=1 RealMemory=1000 Gres=gpu:1
NodeName=host-b NodeAddr={b} CPUs=1 RealMemory=1000 Gres=gpu:1
PartitionName=all Nodes=host-a,host-b Default=YES MaxTime=INFINITE State=UP
"""


@dataclass
class Cluster:
    """Slurm on two hosts, and the folder that they share."""

    hosts: tuple[Host, Host]
    folder: Path

    def start(self, host: Host, *command: str) -> subprocess.Popen[str]:
        """Start a command there, with names that both hosts know."""
        named = ["sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', self.folder / "hosts"]
        out = self.folder / f"{command[0]}-{host.name}.txt"
        out.unlink(missing_ok=True)
        settings = {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": _PATH}
        return host.start([*named, *command], out=out, **settings)

    def ask(self, *command: str, answered: bool = True) -> str:
        """What one of Slurm's commands prints; fails if it fails, unless that is expected."""
        code = self.start(self.hosts[0], *command).wait(PATIENCE_S)
        said = (self.folder / f"{command[0]}-host-a.txt").read_text()
        assert code == 0 or not answered, said
        return said

    def idle(self) -> bool:
        """Whether both nodes are there, which they are not before all daemons are."""
        nodes = self.ask("sinfo", "-h", "-N", "-o", "%t", answered=False)
        return nodes.split() == ["idle", "idle"]

    def state(self) -> str:
        """Of the one job."""
        return self.ask("scontrol", "show", "job", "1")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """It, with its daemons."""
    folder = tmp_path / "slurm"
    (folder / "state").mkdir(parents=True)
    with two_hosts() as hosts:
        addresses = {host.name[-1]: host.address for host in hosts}
        (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder, **addresses))
        # Slurm counts devices: any will do, as nothing here computes on one.
        (folder / "gres.conf").write_text("NodeName=host-a,host-b Name=gpu File=/dev/null\n")
        names = [f"{host.address} {host.name}\n" for host in hosts]
        (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(names))
        found = Cluster(hosts, folder)
        found.start(hosts[0], "slurmctld", "-D", "-i")
        for host in hosts:
            found.start(host, "slurmd", "-D", "-N", host.name)
        wait_until(found.idle)
        yield found


def test_the_time_is_over_and_the_job_goes_on(
    cluster: Cluster, tiny_base: Path, tmp_path: Path
) -> None:
    folder = tmp_path / 'it\'s a "run"'
    folder.mkdir()
    rows = [json.dumps({"prompt": f"the {i}", "completion": " fox"}) for i in range(8)]
    (folder / "rows.jsonl").write_text("\n".join(rows))
    job = {"name": "a", "dataset": {"path": "rows.jsonl"}, "max_steps": STEPS, "save_every": 2}
    job["global_batch_size"] = 4
    write_run(folder / "run.yaml", tiny_base, folder, jobs=[job], deterministic=True)
    size = ["--nodes", "2", "--gpus", "1", "--interface", INTERFACE, "--run-output", "out"]
    lorafusion(folder, "launch", "run.yaml", "--for", "slurm", *size)
    cluster.ask("sbatch", f"--chdir={folder}", str(folder / "run.sbatch"))
    wait_until(lambda: steps(folder / "out") >= 5, RUN_S)
    cluster.ask("scancel", "--signal=USR1", "--batch", "1")  # as Slurm does before the end
    wait_until(lambda: "JobState=PENDING" in cluster.state(), RUN_S)
    paused = json.loads((folder / "out" / "result.json").read_text())["jobs"][0]
    assert paused["state"] == "paused"
    time.sleep(3)  # Slurm takes the nodes back
    cluster.ask("scontrol", "update", "jobid=1", "starttime=now")
    wait_until(lambda: "JobState=COMPLETED" in cluster.state(), RUN_S)
    assert "Restarts=1" in cluster.state()
    lorafusion(folder, "train", "run.yaml", "--output", "alone")
    assert adapter(folder / "out") == adapter(folder / "alone")


def lorafusion(folder: Path, *arguments: str) -> None:
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-m", "lorafusion", *arguments],
        cwd=folder,
        env=settings,
        check=True,
        capture_output=True,
        timeout=RUN_S,
    )


def steps(output: Path) -> int:
    metrics = output / "a" / "metrics.jsonl"
    return metrics.read_text().count('"train"') if metrics.exists() else 0


def adapter(output: Path) -> bytes:
    return (output / "a" / "adapter" / "adapter_model.safetensors").read_bytes()
