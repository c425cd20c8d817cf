"""Tables and legends of the page."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from html import escape

__all__ = ["legend", "table"]


def table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    folded: str = "",
    best: Container[int] = (),
) -> str:
    """A table that scrolls sideways where there is no room.

    Args:
        heads: Of the columns; that of a column of sentences is ``reason`` or ``value``.
        rows: Their cells.
        folded: Fold it away under this summary.
        best: Indices of rows to be set off.
    """
    kind = "wide told" if heads[-1] in ("reason", "value") else "wide"
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    body = "\n".join(
        ('<tr class="best">' if row in best else "<tr>")
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for row, cells in enumerate(rows)
    )
    made = (
        f'<div class="table" tabindex="0"><table class="{kind}"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )
    return f"<details><summary>{escape(folded)}</summary>{made}</details>" if folded else made


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """Of (CSS class, text)."""
    spans = (
        f'<span><svg class="swatch" aria-hidden="true"><rect class="{name}" width="100%" '
        f'height="100%"/></svg>{escape(text)}</span>'
        for name, text in entries
    )
    return f'<div class="legend">{"".join(spans)}</div>'
