"""The report of a run: one self-contained page made from ``result.json`` alone."""

from __future__ import annotations

from pathlib import Path

from lab.report.figures import figures, parties
from lab.report.style import COLOURS, NAMES, Result
from lab.text import printable_content


def signed(value: float | None, digits: int) -> str:
    """A number with its sign; what rounds to 0 has no minus.

    >>> signed(-1e-9, 5), signed(-0.5, 2)
    ('+0.00000', '-0.50')
    """
    return "–" if value is None else f"{round(value, digits) + 0.0:+.{digits}f}"


def render(result: Result) -> str:
    """The page as HTML; figures are SVG inside it and nothing is fetched from anywhere."""
    import jinja2

    result = printable_content(result)

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": _number,
        "signed": signed,
        "count": lambda v: f"{v:,.0f}",
        "size": _size,
        "shown": shown,
    }
    page = environment.get_template("report.html")
    return page.render(
        r=result,
        figures=figures(result),
        parties=parties(result),
        colours=COLOURS,
        names=NAMES,
    )


def _number(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def shown(value: object) -> str:
    """A value of an answer as a person reads it; hidden is a dot."""
    if value is None or value != value:
        return "·"
    if isinstance(value, float):
        whole = value.is_integer() and abs(value) < 1e15
        return f"{int(value):,}" if whole else f"{value:,.6g}"
    return str(value)


def _size(value: float) -> str:
    for unit in ("bytes", "KB", "MB"):
        if value < 1000:
            return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:,.1f} {unit}"
        value /= 1000
    return f"{value:,.1f} GB"
