"""A TrainJob for Kubeflow Trainer."""

from __future__ import annotations

import json
import textwrap

from lorafusion.launch.files.asked import VOLUME, Asked
from lorafusion.launch.files.host import SAVE_S, Meeting, host_script

IMAGE = "lorafusion:latest"
# The runtime torch-distributed gives each pod these.
_MEETING = Meeting(
    first="$PET_MASTER_ADDR",
    is_first="$((PET_NODE_RANK == 0))",
    run="$PET_MASTER_ADDR",
)


def kubeflow_file(asked: Asked) -> str:
    """The text of it."""
    return _TEXT.format(
        file=json.dumps(asked.file),
        name=json.dumps(asked.name),
        nodes=asked.nodes,
        gpus=asked.gpus,
        image=json.dumps(asked.tool.get("image", IMAGE)),
        mount=json.dumps(asked.workdir),
        volume=json.dumps(asked.tool.get("volume", VOLUME)),
        grace=SAVE_S + 60,
        script=textwrap.indent(host_script(asked, _MEETING), " " * 8).rstrip("\n"),
    )


_TEXT = """\
# Trains {file}: kubectl create -f THIS-FILE. Made by `lorafusion launch`.
#
# For Kubeflow Trainer 2.3. The image holds lorafusion and torch. The claim is of a file system that
# all pods share (ReadWriteMany). On it, before the start: the job file, and the data that it names.
# The run's output folder goes there too. Of its own, each pod: a copy of the base, in its cache.
apiVersion: trainer.kubeflow.org/v1alpha1
kind: TrainJob
metadata:
  name: {name}
spec:
  runtimeRef:
    apiGroup: trainer.kubeflow.org
    kind: ClusterTrainingRuntime
    name: torch-distributed
  trainer:
    image: {image}
    numNodes: {nodes}
    numProcPerNode: {gpus}
    resourcesPerNode:
      limits:
        nvidia.com/gpu: {gpus}
    command:
      - bash
      - -c
      - |
{script}
  runtimePatches:
    - manager: lorafusion/launch
      trainingRuntimeSpec:
        template:
          spec:
            replicatedJobs:
              - name: node
                template:
                  spec:
                    template:
                      spec:
                        terminationGracePeriodSeconds: {grace}
                        containers:
                          - name: node
                            volumeMounts:
                              - name: shared
                                mountPath: {mount}
                        volumes:
                          - name: shared
                            persistentVolumeClaim:
                              claimName: {volume}
"""
