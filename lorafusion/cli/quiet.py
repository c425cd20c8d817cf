"""Keeps transformers from writing over our own output."""

from __future__ import annotations

import logging


def quiet_transformers() -> None:
    """Show no progress bars of transformers, and its errors only, unless we log verbosely too."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    if not logging.getLogger("lorafusion").isEnabledFor(logging.INFO):
        transformers_logging.set_verbosity_error()
