"""What libraries read from the environment once, when they are loaded."""

from __future__ import annotations

import os


def prepare_environment() -> None:
    """To be called before torch is imported; what the user has set is left as it is.

    OpenMP's threads otherwise spin at the end of every parallel region, and a step has thousands of
    them. On two cores that other work shared, a step took 9 to 37 s spinning and 3 to 4 s waiting.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
