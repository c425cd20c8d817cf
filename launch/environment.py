"""What libraries read from the environment once, when they are loaded."""

from __future__ import annotations

import os


def prepare_environment() -> None:
    """To be called before torch is imported; what the user has set is left as it is.

    GNU OpenMP's threads spin for milliseconds at the end of every parallel region, and a step has
    thousands of them. Two cores that two other processes kept busy took 12 to 18 s for a step;
    spinning 2,000 rounds, then sleeping, it took 4.2 to 4.4 s. On idle cores the two were alike
    within the noise, while never spinning took 3 to 20% longer.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
