"""What a launch file is to start, and on what."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from lorafusion.errors import LaunchError
from lorafusion.training.grid import Grid

# Job names: what Kubernetes takes, the strictest, for a TrainJob and the pods named after it.
_NAME_LENGTH = 40
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]*")
PORT = 29500
# Of the file system that the hosts share, where they have none with this machine.
VOLUME = "lorafusion"


@dataclass(frozen=True)
class Asked:
    """A run on a cluster.

    Attributes:
        file: The job file as the hosts find it: absolute, or below ``workdir``.
        workdir: Where every host starts its ranks: the same folder on all.
        nodes: Hosts.
        gpus: Of each host; a rank each.
        grid: Pipeline stages and replicas.
        output: Folder of the run; None: as ``lorafusion train`` has it, from ``workdir`` on.
        python: Python with lorafusion on the hosts.
        max_restarts: How often torchrun starts the ranks again.
        interface: Network that the hosts use among themselves; empty: what they choose.
        hosts: Their names, for ssh; empty: to be given to the script.
        tool: What else the tool needs to know, by option.
    """

    file: str
    workdir: str
    nodes: int
    gpus: int
    grid: Grid
    output: str | None
    python: str
    max_restarts: int
    interface: str
    hosts: tuple[str, ...]
    tool: Mapping[str, str]

    @property
    def name(self) -> str:
        """Of the job file, in letters that every tool takes."""
        letters = re.sub(r"[^a-z0-9]+", "-", PurePosixPath(self.file).stem.lower())
        name = f"lorafusion-{letters}"[:_NAME_LENGTH]
        return name.strip("-")


def check_words(words: Mapping[str, str]) -> None:
    """None of these, by option, would end a line or a word of the launch file.

    Raises:
        LaunchError: One would.
    """
    for option, word in words.items():
        if not word.isprintable():
            raise LaunchError(
                f"{option} is {word!r}; allowed: printable characters. Rename it, or move what it "
                "names."
            )


def grid_of(nodes: int, gpus: int, stages: int | None, replicas: int) -> Grid:
    """Stages and replicas: a rank a GPU.

    Raises:
        LaunchError: They are not as many.
    """
    ranks = nodes * gpus
    grid = Grid(ranks // replicas if stages is None else stages, replicas)
    if grid.ranks != ranks:
        several = f" and --replicas {replicas}" if replicas > 1 else ""
        asked = f"--stages is {grid.stages}{several}" if stages else f"--replicas is {replicas}"
        allowed = "one rank for each stage of each replica" if replicas > 1 else "one rank a stage"
        means = f", which means {ranks // replicas}" if not ranks % replicas else ""
        raise LaunchError(
            f"{asked}, and --nodes {nodes} with --gpus {gpus} are {ranks} ranks; "
            f"allowed: {allowed}. Leave --stages out{means}, or change --nodes or --gpus."
        )
    return grid


def host_names(text: str, nodes: int) -> tuple[str, ...]:
    """The hosts that are named in ``text``, between commas; none in an empty one.

    Raises:
        LaunchError: They are not as many as nodes, one comes twice, or one is no host's name.
    """
    names = tuple(name.strip() for name in text.split(",")) if text.strip() else ()
    for name in names:
        if not _HOST.fullmatch(name):
            raise LaunchError(
                f"--hosts names {name!r}; allowed: names as ssh takes them, such as node1 or "
                "user@10.0.0.1, with a comma between two. Options of ssh belong into "
                "~/.ssh/config."
            )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise LaunchError(
            f"--hosts names {', '.join(twice)} more than once; allowed: every host once, with "
            "all its GPUs in --gpus."
        )
    if names and len(names) != nodes:
        raise LaunchError(
            f"--hosts names {len(names)}, and --nodes is {nodes}; allowed: as many hosts as "
            "nodes. Change one of them."
        )
    return names
