"""The evidence as an SVG picture: for each item its figures as bars, those of one unit beside each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from xml.sax.saxutils import escape

from tests.bench.evidence import number

_WIDTH: Final = 880
_LABELS: Final = 330
_BARS: Final = 400
_ROW: Final = 22
_OURS: Final = "#0b6e4f"
_OTHERS: Final = "#9aa5b1"
_RANGE: Final = "#1f2933"


def draw(document: Mapping[str, Any]) -> str:
    """The picture. A line on a bar goes from the least to the greatest of its rounds."""
    parts: list[str] = []
    top = 10
    for item in document["items"].values():
        for unit in dict.fromkeys(figure["unit"] for figure in item["figures"]):
            figures = [figure for figure in item["figures"] if figure["unit"] == unit]
            parts.append(_text(10, top + 16, f"{item['title']}, {unit}", "font-weight='bold'"))
            top += 26
            greatest = max(figure["greatest"] for figure in figures) or 1.0
            for figure in figures:
                parts += _row(top, figure, _BARS / greatest)
                top += _ROW
            top += 14
    head = (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{_WIDTH}' height='{top}' viewBox='0 0 {_WIDTH} {top}'"
        " font-family='sans-serif' font-size='13'>"
    )
    return "\n".join([head, f"<rect width='{_WIDTH}' height='{top}' fill='white'/>", *parts, "</svg>"]) + "\n"


def _row(top: int, figure: Mapping[str, Any], scale: float) -> list[str]:
    colour = _OTHERS if figure["name"].startswith(("JDBC", "ceiling", "one record", "blind", "Debezium")) else _OURS
    length, least, greatest = (figure[name] * scale for name in ("median", "least", "greatest"))
    middle = top + _ROW / 2 - 2
    return [
        _text(_LABELS - 8, top + 14, figure["name"], "text-anchor='end'"),
        f"<rect x='{_LABELS}' y='{top + 2}' width='{length:.1f}' height='{_ROW - 7}' fill='{colour}'/>",
        f"<path d='M{_LABELS + least:.1f} {middle}H{_LABELS + greatest:.1f}' stroke='{_RANGE}' stroke-width='2'/>",
        _text(_LABELS + max(length, greatest) + 8, top + 14, number(figure["median"])),
    ]


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' {more}>{escape(text)}</text>"
