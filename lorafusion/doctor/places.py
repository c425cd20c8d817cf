"""The hub, its cache, and the folders that are written to."""

from __future__ import annotations

import os
import shutil
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from urllib.parse import urlsplit

from lorafusion.doctor.finding import Finding
from lorafusion.doctor.machine import GB
from lorafusion.doctor.surroundings import Surroundings
from lorafusion.files import write_bytes_atomic

HUB_SECONDS = 3.0
_SIZE_SECONDS = 2.0  # a cache of many models on a network file system can take minutes to add up
_TRUE = {"1", "on", "yes", "true"}  # as huggingface_hub reads its variables


def hub(around: Surroundings) -> Finding:
    """Whether the model hub answers."""
    endpoint = (around.env.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if around.env.get(variable, "").lower() in _TRUE:
            found = f"{variable} is set: {endpoint} was not asked"
            return Finding("ok", found, "bases and datasets come from folders and the hub's cache")
    if urlsplit(endpoint).scheme not in ("http", "https"):
        found = f"HF_ENDPOINT is {endpoint}, which is no web address"
        return Finding("warning", found, "nothing can be fetched", "unset HF_ENDPOINT")
    started = time.monotonic()
    error = _hub_error(endpoint)
    if error:
        means = "only folders, and what the hub's cache holds, can be used as base or dataset"
        fix = "set HF_ENDPOINT to a mirror or HTTPS_PROXY to a proxy; or HF_HUB_OFFLINE=1"
        return Finding("warning", f"{endpoint} does not answer: {error}", means, fix)
    found = f"{endpoint} answers within {time.monotonic() - started:.1f} s"
    return Finding("ok", found, "bases and datasets can be named by hub id")


def hub_token(around: Surroundings) -> Finding:
    """Whether there is a token. It is not shown, nor tried."""
    means = "gated and private models need one; others do without"
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if around.env.get(variable):
            return Finding("ok", f"there is one in {variable}; it was not tried", means)
    file = Path(around.env.get("HF_TOKEN_PATH") or _hub_home(around) / "token").expanduser()
    if file.is_file():
        return Finding("ok", f"there is one in {file}; it was not tried", means)
    return Finding("missing", "there is none", means, "hf auth login, or set HF_TOKEN")


def hub_cache(around: Surroundings) -> Finding:
    """Where the hub's files are kept, and how much of them there is."""
    folder = Path(around.env.get("HF_HUB_CACHE") or _hub_home(around) / "hub").expanduser()
    place = _deepest(folder)
    free = f"{shutil.disk_usage(place).free / GB:.1f} GB free"
    means = "bases that are fetched from the hub land here"
    error = _write_error(place)
    if error:
        fix = "set HF_HOME to a folder that can be written to"
        return Finding("warning", f"{folder} cannot be written to: {error}", means, fix)
    if place != folder:
        return Finding("ok", f"{folder}, not there yet, {free}", means)
    size, whole = _size(folder)
    return Finding("ok", f"{folder}, {'' if whole else 'over '}{size / GB:.2f} GB, {free}", means)


def home_folder(around: Surroundings) -> Finding:
    """LoRAFusion's own cache."""
    means = "the demo, tokens of datasets and names of bases are kept here"
    return _folder(around.home, means, "set LORAFUSION_HOME to a folder with room", "warning")


def output_folder(around: Surroundings) -> Finding:
    """Where runs go."""
    means = "runs are written here unless --output or output_dir says otherwise"
    return _folder(around.output, means, "give another folder with --output", "missing")


def _folder(folder: Path, means: str, fix: str, bad: str) -> Finding:
    place = _deepest(folder)
    error = _write_error(place)
    if error:
        found = f"{folder} cannot be written to: {error}"
        return Finding("missing" if bad == "missing" else "warning", found, means, fix)
    free = shutil.disk_usage(place).free
    found = f"{folder}, {free / GB:.1f} GB free; writing, fsync and rename work"
    if place != folder.absolute():
        found += f" in {place}, the deepest part that exists"
    return Finding(
        "ok" if free > 2 * GB else "warning", found, means, None if free > 2 * GB else fix
    )


def _deepest(folder: Path) -> Path:
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if os.path.lexists(place))


def _write_error(place: Path) -> str | None:
    """Why a file cannot be written as runs write them; tried, since root's rights say nothing."""
    file = place / f".lorafusion-doctor.{uuid.uuid4().hex}"
    try:
        write_bytes_atomic(file, b"to see whether this folder can be written to\n")
    except OSError as error:
        return f"{error.strerror or error}"
    finally:
        if file.exists():
            file.unlink()
    return None


def _hub_home(around: Surroundings) -> Path:
    caches = around.env.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(around.env.get("HF_HOME") or f"{caches}/huggingface").expanduser()


def _hub_error(endpoint: str) -> str | None:
    request = urllib.request.Request(endpoint, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=HUB_SECONDS):
            return None
    except urllib.error.HTTPError as error:
        # A mirror may forbid its front page: that is an answer, too.
        return None if error.code < 500 else f"HTTP {error.code}"
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return (
            f"{type(reason).__name__}: {reason}" if isinstance(reason, Exception) else str(reason)
        )


def _size(folder: Path) -> tuple[int, bool]:
    """Bytes of the files below, and whether all could be added up in time."""
    give_up = time.monotonic() + _SIZE_SECONDS
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            about = os.lstat(os.path.join(root, name))
            total += about.st_size
        if time.monotonic() > give_up:
            return total, False
    return total, True
