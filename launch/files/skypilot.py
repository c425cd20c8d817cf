"""A task for SkyPilot."""

from __future__ import annotations

import json
import shlex
import textwrap

from lorafusion.launch.files.asked import VOLUME, Asked
from lorafusion.launch.files.host import Meeting, host_script

GPU = "H100"
_MEETING = Meeting(
    first="$first",
    is_first="$((SKYPILOT_NODE_RANK == 0))",
    run="$SKYPILOT_TASK_ID",
    address="$address",
)
_ADDRESSES = """\
first=$(echo "$SKYPILOT_NODE_IPS" | sed -n 1p)
address=$(echo "$SKYPILOT_NODE_IPS" | sed -n "$((SKYPILOT_NODE_RANK + 1))p")
"""


def skypilot_file(asked: Asked) -> str:
    """The text of it."""
    run = _ADDRESSES + host_script(asked, _MEETING)
    return _TEXT.format(
        file=json.dumps(asked.file),
        name=json.dumps(asked.name),
        nodes=asked.nodes,
        gpus=json.dumps(f"{asked.tool.get('gpu-type', GPU)}:{asked.gpus}"),
        mount=json.dumps(asked.workdir),
        volume=json.dumps(asked.tool.get("volume", VOLUME)),
        setup=_block(f"{shlex.quote(asked.python)} -m pip install lorafusion"),
        run=_block(run),
    )


def _block(script: str) -> str:
    return textwrap.indent(script, "  ").rstrip("\n")


_TEXT = """\
# Trains {file}: sky jobs launch THIS-FILE. Made by `lorafusion launch`.
#
# The volume is a file system that all nodes share (`sky volumes apply`), with real renames and
# locks, so no bucket. On it, before the start: the job file, and the data that it names. The run's
# output folder goes there too. Of its own, each node: a copy of the base, in its cache.
name: {name}
num_nodes: {nodes}
resources:
  accelerators: {gpus}
volumes:
  {mount}: {volume}
setup: |
{setup}
run: |
{run}
"""
