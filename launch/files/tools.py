"""The tools that a launch file can be made for, and the options that only some of them have."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass

from lorafusion.errors import LaunchError
from lorafusion.launch.files.asked import Asked
from lorafusion.launch.files.kubeflow import kubeflow_file
from lorafusion.launch.files.skypilot import skypilot_file
from lorafusion.launch.files.slurm import slurm_file
from lorafusion.launch.files.ssh import ssh_file

_PLAIN = re.compile(r"[\w.:/@+-]+", re.ASCII)


@dataclass(frozen=True)
class Tool:
    """One that starts processes on several hosts.

    Attributes:
        write: Makes the text of the file.
        suffix: Of its name.
        command: Starts the run; the file's path is put in for ``{}``.
        options: Which of the options that not all tools have it takes.
        workdir: Where its hosts work, if that is no folder of this machine.
        executable: The file may be run by itself.
    """

    write: Callable[[Asked], str]
    suffix: str
    command: str
    options: frozenset[str]
    workdir: str | None = None
    executable: bool = False

    @property
    def python(self) -> str:
        """On its hosts: this one where they share the file system of this machine."""
        return sys.executable if self.workdir is None else "python"


TOOLS = {
    "slurm": Tool(slurm_file, ".sbatch", "sbatch {}", frozenset({"time"})),
    "skypilot": Tool(
        skypilot_file,
        ".sky.yaml",
        "sky jobs launch {}",
        frozenset({"volume", "gpu-type"}),
        workdir="/shared",
    ),
    "kubeflow": Tool(
        kubeflow_file,
        ".trainjob.yaml",
        "kubectl create -f {}",
        frozenset({"volume", "image"}),
        workdir="/shared",
    ),
    "ssh": Tool(ssh_file, ".ssh.sh", "bash {}", frozenset({"hosts"}), executable=True),
}


def find_tool(name: str) -> Tool:
    """The tool of that name.

    Raises:
        LaunchError: There is none.
    """
    if name not in TOOLS:
        raise LaunchError(f"--for is {name!r}; allowed: {', '.join(TOOLS)}.")
    return TOOLS[name]


def check_options(name: str, given: dict[str, str]) -> dict[str, str]:
    """Those of ``given`` that are not empty, by option.

    Raises:
        LaunchError: One of them means nothing to the tool, or is not plain.
    """
    used = {option: value for option, value in given.items() if value}
    for option in used.keys() - TOOLS[name].options:
        tools = ", ".join(tool for tool, one in TOOLS.items() if option in one.options)
        raise LaunchError(
            f"--{option} is given, which means nothing with --for {name}; allowed with: {tools}. "
            "Leave it out."
        )
    for option, value in used.items():
        if option != "hosts" and not _PLAIN.fullmatch(value):
            raise LaunchError(
                f"--{option} is {value!r}; allowed: letters, digits and any of . _ - : / @ +."
            )
    return used
