"""What one host runs, whatever starts it: torchrun, a stop that reaches it, its exit code."""

from __future__ import annotations

import shlex
import signal
from dataclasses import dataclass

from lorafusion.launch.codes import SIGNALLED
from lorafusion.launch.files.asked import PORT, Asked
from lorafusion.launch.report import EXIT_CODE_FILE, FOLDER_VARIABLE

# For a stop: the steps that run, and the checkpoints of all jobs.
SAVE_S = 600
STOPPED = SIGNALLED + signal.SIGTERM


@dataclass(frozen=True)
class Meeting:
    """How a host finds the others, each in words of the shell.

    Attributes:
        first: Name or address of the host that holds the rendezvous.
        is_first: 1 on that host, 0 on the others.
        run: The same on all hosts, and of this start alone.
        address: How the others reach this host; empty: by its own name.
        told: What stops the script stops torchrun too.
    """

    first: str
    is_first: str
    run: str
    address: str = ""
    told: bool = False


def host_script(asked: Asked, meeting: Meeting, more: str = "") -> str:
    """For bash.

    Args:
        asked: The run.
        meeting: How the host finds the others.
        more: Lines for once a stop, which is TERM, is waited for.
    """
    lines = [*_stop(meeting), *more.splitlines(), *_settings(asked), *_torchrun(asked, meeting)]
    return "\n".join([*lines, *_ending()]) + "\n"


def rank_arguments(asked: Asked) -> list[str]:
    """Of Python, for each rank: see :mod:`lorafusion.cli.rank`."""
    arguments = ["-m", "lorafusion.launch", asked.file, "--stages", str(asked.grid.stages)]
    if asked.grid.replicas > 1:
        arguments += ["--replicas", str(asked.grid.replicas)]
    if asked.output is not None:
        arguments += ["--output", asked.output]
    return [*arguments, "--resume"]


def _stop(meeting: Meeting) -> list[str]:
    """A stop saves all state. It may come before there is anything to stop."""
    pass_on = ' [ -z "$torchrun" ] || kill -TERM "$torchrun" 2>/dev/null;'
    return [
        "stopped='' torchrun=''",
        f"stop() {{ stopped=1;{'' if meeting.told else pass_on} }}",
        "trap stop TERM INT",
    ]


def _settings(asked: Asked) -> list[str]:
    lines = [
        f"cd {shlex.quote(asked.workdir)} || exit 2",
        "# Each host keeps its own copy of the base in its caches. To move them to a local disk:",
        "# export HF_HOME=/local/huggingface LORAFUSION_HOME=/local/lorafusion",
    ]
    if asked.interface:
        name = shlex.quote(asked.interface)
        lines += [f"export GLOO_SOCKET_IFNAME={name} NCCL_SOCKET_IFNAME={name}"]
    else:
        lines += [
            "# Where hosts have several networks, the one to use:",
            "# export GLOO_SOCKET_IFNAME=eth0 NCCL_SOCKET_IFNAME=eth0",
        ]
    return [
        *lines,
        "# Else a host that comes back is looked for where it was before.",
        "export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1",
        "# Here ranks leave what the run ended with: bad input and a stop are not tried again.",
        f"{FOLDER_VARIABLE}=$(mktemp -d) || exit 2",
        f"export {FOLDER_VARIABLE}",
    ]


def _torchrun(asked: Asked, meeting: Meeting) -> list[str]:
    options = [
        f"--nnodes {asked.nodes} --nproc-per-node {asked.gpus}",
        f"--max-restarts {asked.max_restarts} --shutdown-timeout {SAVE_S}",
        f'--rdzv-backend c10d --rdzv-endpoint "{meeting.first}:{PORT}"',
        f'--rdzv-id "{meeting.run}" --rdzv-conf "is_host={meeting.is_first}"',
    ]
    if meeting.address:
        options.append(f'--local-addr "{meeting.address}"')
    options.append(shlex.join(rank_arguments(asked)))
    command = f"{shlex.quote(asked.python)} -m torch.distributed.run"
    start = " \\\n  ".join([command, *options])
    return [f"{start} &", "torchrun=$!", '[ -z "$stopped" ] || stop']


def _ending() -> list[str]:
    """The exit code is the run's where rank 0 is, else torchrun's."""
    file = f'"${FOLDER_VARIABLE}/{EXIT_CODE_FILE}"'
    return [
        'wait "$torchrun"; code=$?',
        'while kill -0 "$torchrun" 2>/dev/null; do wait "$torchrun"; code=$?; done',
        f'if [ -n "$stopped" ]; then code={STOPPED}; fi',
        f"if [ -s {file} ]; then code=$(cat {file}); fi",
        f'rm -rf "${FOLDER_VARIABLE}"',
        'exit "$code"',
    ]
