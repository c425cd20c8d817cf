"""A script for Slurm's sbatch."""

from __future__ import annotations

import re
import shlex

from lorafusion.errors import LaunchError
from lorafusion.launch.files.asked import Asked
from lorafusion.launch.files.host import SAVE_S, STOPPED, Meeting, host_script

TIME = "24:00:00"
# Before the time is over: to save, and for Slurm, which looks once a minute.
_BEFORE_S = SAVE_S + 60
_SHORTEST_S = 3 * _BEFORE_S
# As sbatch takes it: minutes[:seconds], hours:minutes:seconds, or days-hours[:minutes[:seconds]].
_SHORT = re.compile(r"(\d+)(?::(\d+)(?::(\d+))?)?")
_LONG = re.compile(r"(\d+)-(\d+)(?::(\d+)(?::(\d+))?)?")
_MEETING = Meeting(
    first="$LORAFUSION_FIRST",
    is_first="$((SLURM_NODEID == 0))",
    run="$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}",
    told=True,  # Slurm sends a signal to every process
)


def slurm_file(asked: Asked) -> str:
    """The text of it."""
    # Where the time is nearly over, the script alone is told, and the run goes on in a new start.
    options = {
        "job-name": asked.name,
        "nodes": asked.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": asked.gpus,
        "exclusive": None,
        "mem": 0,
        "time": _time(asked.tool.get("time", TIME)),
        "requeue": None,
        "signal": f"B:USR1@{_BEFORE_S}",
        "open-mode": "append",
        "output": "%x-%j.out",
    }
    directives = "\n".join(
        f"#SBATCH --{name}" + ("" if value is None else f"={value}")
        for name, value in options.items()
    )
    return _TEXT.format(
        directives=directives,
        file=shlex.quote(asked.file),
        host=host_script(asked, _MEETING),
        before=_BEFORE_S,
        stopped=STOPPED,
    )


def _time(text: str) -> str:
    """The same.

    Raises:
        LaunchError: It is no time as sbatch takes it, or leaves none to train.
    """
    seconds = _seconds(text)
    if seconds is None or seconds < _SHORTEST_S:
        raise LaunchError(
            f"--time is {text!r}; allowed: MINUTES, HOURS:MINUTES:SECONDS or DAYS-HOURS, and at "
            f"least {_SHORTEST_S // 60} minutes: the last {_BEFORE_S // 60} of each start are "
            "there to save the state."
        )
    return text


def _seconds(text: str) -> int | None:
    long, short = _LONG.fullmatch(text), _SHORT.fullmatch(text)
    if long:
        days, hours, minutes, seconds = (int(part or 0) for part in long.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if not short:
        return None
    parts = [int(part) for part in short.groups() if part is not None]
    if len(parts) < 3:  # the first is minutes
        parts = [0, *parts, 0][:3]
    return (parts[0] * 60 + parts[1]) * 60 + parts[2]


_TEXT = """\
#!/bin/bash
# Trains {file}: sbatch THIS-FILE. Made by `lorafusion launch`.
#
# On a file system that all nodes share: the folder below, the job file, its data, Python and the
# run's output folder. Of its own, each node: a copy of the base, in its cache.
{directives}

# A task a node: torchrun, which starts its ranks.
one_node=$(cat <<'ONE_NODE'
{host}ONE_NODE
)
LORAFUSION_FIRST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export LORAFUSION_FIRST
srun --kill-on-bad-exit=0 --cpu-bind=none bash -c "$one_node" &
srun=$!

# USR1: the time is over in {before} s. The ranks are told to stop, which saves all state; the job
# goes on in a new start. TERM: scancel has told them already.
again=
trap 'again=1; scancel --signal=TERM "$SLURM_JOB_ID"' USR1
trap : TERM
wait "$srun"; code=$?
while kill -0 "$srun" 2>/dev/null; do wait "$srun"; code=$?; done
if [ -n "$again" ] && [ "$code" -eq {stopped} ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
"""
