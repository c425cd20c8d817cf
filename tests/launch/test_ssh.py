"""The script of ``lorafusion launch --for ssh``, with a real sshd on each of two hosts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.launch.conftest import PATIENCE_S, ROOT, wait_until, write_run
from tests.launch.hosts import INTERFACE, RUN_S, Host, two_hosts, why_not

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin")
WHY_NOT = why_not() or ("" if SSHD else "sshd is not installed (on Debian: openssh-server)")
pytestmark = [
    pytest.mark.multiproc,
    pytest.mark.hosts,
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
]


@dataclass
class Site:
    """Two hosts with sshd, and the folder that they share."""

    hosts: tuple[Host, Host]
    folder: Path
    ssh: str

    def write(self, steps: int) -> Path:
        """The script for a run of so many steps."""
        job = {"name": "a", "dataset": {"path": "rows.jsonl"}, "max_steps": steps}
        job |= {"save_every": 2, "global_batch_size": 4}
        write_run(self.folder / "run.yaml", Path("base"), self.folder, jobs=[job])
        command = [sys.executable, "-m", "lorafusion", "launch", "run.yaml", "--for", "ssh"]
        command += ["--nodes", "2", "--gpus", "1", "--interface", INTERFACE, "--overwrite"]
        command += ["--hosts", ",".join(f"root@{host.address}" for host in self.hosts)]
        subprocess.run(
            command,
            cwd=self.folder,
            env={"PYTHONPATH": str(ROOT)},
            check=True,
            capture_output=True,
            timeout=PATIENCE_S,
        )
        return self.folder / "run.ssh.sh"

    def start(self, script: Path) -> subprocess.Popen[str]:
        """Run it on the first host, as from a terminal there."""
        return self.hosts[0].start(["bash", script], out=self.out, SSH_COMMAND=self.ssh)

    @property
    def out(self) -> Path:
        return self.folder / "out.txt"

    def steps(self) -> int:
        metrics = self.folder / "runs" / "run" / "a" / "metrics.jsonl"
        return metrics.read_text().count('"train"') if metrics.exists() else 0

    def result(self) -> dict[str, object]:
        found = json.loads((self.folder / "runs" / "run" / "result.json").read_text())
        return found["jobs"][0]


@pytest.fixture
def site(tiny_base: Path, tmp_path: Path) -> Iterator[Site]:
    """Both hosts, sshd listening on them; the shared folder has a name that is hard to quote."""
    folder = tmp_path / 'it\'s a "run" $HOME'
    shutil.copytree(tiny_base, folder / "base")
    rows = [json.dumps({"prompt": f"the {i}", "completion": " fox"}) for i in range(8)]
    (folder / "rows.jsonl").write_text("\n".join(rows))
    with two_hosts() as hosts:
        ssh = start_sshd(hosts, tmp_path)
        yield Site(hosts, folder, ssh)


def start_sshd(hosts: tuple[Host, Host], folder: Path) -> str:
    """On both; returns the ssh that they let in."""
    for name in ("host_key", "user_key"):
        key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(key, check=True, timeout=PATIENCE_S)
    settings = [
        f"HostKey {folder}/host_key",
        f"AuthorizedKeysFile {folder}/user_key.pub",
        "StrictModes no",
        "UsePAM no",
        "PidFile none",
        f"SetEnv PYTHONPATH={ROOT} OMP_NUM_THREADS=1",
    ]
    (folder / "sshd_config").write_text("\n".join(settings) + "\n")
    # sshd wants a folder in /run, which is this namespace's own then.
    own = 'mount -t tmpfs tmpfs /run && mkdir -m 755 /run/sshd && exec "$0" -D -e -f "$1"'
    for host in hosts:
        log = folder / f"{host.name}.sshd"
        host.start(["sh", "-c", own, SSHD, folder / "sshd_config"], out=log)
        wait_until(lambda log=log: "listening" in log.read_text())
    options = "StrictHostKeyChecking=no UserKnownHostsFile=/dev/null LogLevel=ERROR".split()
    return f"ssh -F none -i {folder}/user_key " + " ".join(f"-o {option}" for option in options)


def test_two_hosts_train(site: Site) -> None:
    run = site.start(site.write(4))
    assert run.wait(RUN_S) == 0, site.out.read_text()
    assert site.result()["state"] == "succeeded"
    log = (site.folder / "runs" / "run" / "logs" / "rank-1.log").read_text()
    assert "rank 1 of 2 on host-b" in log


def test_ctrl_c_saves_and_the_same_command_goes_on(site: Site) -> None:
    run = site.start(site.write(30))
    wait_until(lambda: site.steps() >= 3, RUN_S)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does
    assert run.wait(RUN_S) == 143, site.out.read_text()
    assert site.result()["state"] == "paused"
    assert "exit code 143" in site.out.read_text()
    assert site.start(site.folder / "run.ssh.sh").wait(RUN_S) == 0, site.out.read_text()
    assert site.result()["state"] == "succeeded"
    for host in site.hosts:
        assert all("lorafusion.launch" not in command(pid) for pid in host.processes())


def test_a_lost_host_stops_the_other(site: Site) -> None:
    run = site.start(site.write(100_000))
    wait_until(lambda: site.steps() >= 3, RUN_S)
    site.hosts[1].kill()
    assert run.wait(RUN_S) == 255, site.out.read_text()
    said = site.out.read_text()
    assert f"root@{site.hosts[1].address} cannot be reached by ssh any more" in said
    assert "rank 1 (stage 1) is gone" in said


def test_bad_input_is_told_once(site: Site) -> None:
    script = site.write(4)
    (site.folder / "run.yaml").write_text("jobs: []\n")
    assert site.start(script).wait(RUN_S) == 2, site.out.read_text()
    assert site.out.read_text().count("run.yaml: ") == 1


def command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
