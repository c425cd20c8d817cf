"""The package that ZeRO-3 takes. Nothing of it is imported here, nor torch."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from lorafusion.errors import LaunchError

KNOWN = "0.19"
"""The versions that were tried begin so."""
INSTALL = "Install it, without compiling anything, with `pip install 'lorafusion[zero]'`"


def require_deepspeed() -> str:
    """Its version.

    Raises:
        LaunchError: It is not installed.
    """
    try:
        return version("deepspeed")
    except PackageNotFoundError as error:
        raise LaunchError(
            f"`parallel: {{zero: 3}}` needs DeepSpeed, which is not installed. {INSTALL}, or leave "
            "`zero` out: `--stages` cuts a base over ranks without it."
        ) from error
