"""Import a library in a child process: one that crashes or hangs there harms nobody else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any

SECONDS = 80.0


class Facts:
    """What :mod:`lorafusion.doctor.probes` says, each of its functions run once at most."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._own: dict[str, threading.Lock] = {}
        self._known: dict[str, Mapping[str, Any]] = {}

    def __call__(self, probe: str) -> Mapping[str, Any]:
        """The answer of ``probe``, or ``{"error": why there is none}``."""
        with self._lock:
            own = self._own.setdefault(probe, threading.Lock())
        with own:
            if probe not in self._known:
                self._known[probe] = _ask(probe)
            return self._known[probe]


def _ask(probe: str) -> Mapping[str, Any]:
    code = f"from lorafusion.doctor import probes; probes.tell(probes.{probe})"
    # The child must find what this process would: its path, not the one of `python -c`.
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", code],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {SECONDS:g} s"}
    try:
        answer: dict[str, Any] = json.loads(done.stdout.strip().rsplit("\n", 1)[-1])
        return answer
    except ValueError:
        return {"error": _how_it_ended(done.returncode, done.stderr)}


def _how_it_ended(code: int, stderr: str) -> str:
    if code < 0:
        return f"the process was ended by {signal.Signals(-code).name}"
    lines = stderr.strip().splitlines()
    return lines[-1] if lines else f"the process ended with code {code}"
