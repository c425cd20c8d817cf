"""Train in forks of this process and kill each at a random instant, until one gets to its end.

A fork is a process of its own that need not import torch again, so that many can be killed.
Run as ``python killed_run.py FOLDER``, where FOLDER/spec.json says what to train; prints how many
were killed.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401

from lorafusion.jobs.schema import RunSpec
from lorafusion.launch.local import StopRequest, run_local
from lorafusion.training.events import Events

KILLS = 12


def main(folder: Path) -> None:
    spec = RunSpec.model_validate_json((folder / "spec.json").read_text())
    torch.set_num_threads(1)
    rng = random.Random(0)
    whole = 1.0  # seconds that a run takes, roughly
    for kills in range(KILLS + 1):
        started = time.perf_counter()
        child = os.fork()
        if child == 0:
            train(spec, folder / "killed")
        if kills >= KILLS:  # enough: let it finish
            assert os.waitpid(child, 0)[1] == 0
        else:
            time.sleep(rng.uniform(0.1, 1) * whole)
            os.kill(child, signal.SIGKILL)
            if os.waitpid(child, 0)[1] == 0:
                whole = (time.perf_counter() - started) / 2
            if (folder / "killed" / "result.json").exists():
                break
    sys.stdout.write(f"{kills}\n")


def train(spec: RunSpec, output: Path) -> None:
    """In the child: it never returns."""
    code = 1
    try:
        result = run_local(
            spec, output=output, events=Events(), stop=StopRequest(), existing="resume"
        )
        code = int({job.state for job in result.jobs} != {"succeeded"})
        if code:
            sys.stderr.write(f"{result}\n")
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
