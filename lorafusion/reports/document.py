"""The page around what is shown: one file, light and dark, that loads and runs nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from string import Template

__all__ = ["document", "section"]


def document(
    title: str, lead: str, body: str, missing: Sequence[str] = (), data: Sequence[object] = ()
) -> str:
    """A whole page.

    Args:
        title: Text.
        lead: A line of text below it.
        body: HTML.
        missing: What is not shown and why: texts.
        data: Curves of jobs, for the script that tells what is pointed at.
    """
    style = _asset("lorafusion.plans", "gantt.css") + _asset("lorafusion.reports", "report.css")
    script = _asset("lorafusion.reports", "report.js")
    fields = {
        "title": escape(title),
        "lead": escape(lead),
        "style": style,
        "script": script,
        # Nothing else on the page may run or load, whatever a job's name holds.
        "style_hash": _source_hash(style),
        "script_hash": _source_hash(script),
        "body": body,
        "missing": _missing(missing),
        "data": _embedded(data),
    }
    template = _asset("lorafusion.reports", "report.html")
    return Template(template).substitute(fields)


def section(name: str, title: str, body: str) -> str:
    """A part of the page; ``name`` is its anchor."""
    return f'<section aria-labelledby="{name}">\n<h2 id="{name}">{title}</h2>\n{body}\n</section>'


def _missing(missing: Sequence[str]) -> str:
    entries = "".join(f"<li>{escape(text)}</li>" for text in missing)
    return f'<div class="note"><b>Not shown</b><ul>{entries}</ul></div>' if missing else ""


def _asset(package: str, name: str) -> str:
    return files(package).joinpath(name).read_text(encoding="utf-8")


def _source_hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _embedded(data: object) -> str:
    """JSON that ends no script element, whatever the names hold."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
