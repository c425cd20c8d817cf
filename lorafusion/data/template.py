"""Chat templates: files of them, and today's date in them."""

from __future__ import annotations

import re
from pathlib import Path

from lorafusion.errors import DataError

# Some templates (Llama 3's) write today's date. Tokens must be a function of the file and the
# tokenizer alone, or a run resumed the next day would train on others, so the date is the one that
# those templates fall back to.
FIXED_DATE = (
    "{% macro strftime_now(format) %}"
    "{{ '2024-07-26' if format == '%Y-%m-%d' else '26 Jul 2024' }}"
    "{% endmacro %}"
)


def read_template(path: str | None) -> str | None:
    """The Jinja text of a template file.

    Raises:
        DataError: It cannot be read, is blank, or is no Jinja.
    """
    if path is None:
        return None
    from jinja2 import Environment, TemplateSyntaxError

    try:
        text = Path(path).read_text(encoding="utf-8")
        Environment(extensions=["jinja2.ext.loopcontrols"]).parse(_without_generation(text))
    except TemplateSyntaxError as error:
        raise DataError(f"{path}:{error.lineno}: is no Jinja template: {error.message}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8; save the chat template as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read as a chat template: {error.strerror}") from error
    if not text.strip():
        raise DataError(f"{path}: is empty; a chat template is Jinja text")
    return text


def _without_generation(template: str) -> str:
    """A template without the ``generation`` blocks that transformers adds to Jinja."""
    return re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", template)


def with_fixed_date(template: str) -> str:
    """``template``, in which today is always the same day."""
    return FIXED_DATE + template if "strftime_now" in template else template
