"""The report of a run: one self-contained page made from ``result.json`` alone."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from lab.report import tables, tables_detection
from lab.report.figures import figures
from lab.report.style import COLOURS, NAMES, THEMES, Result, units
from lab.report.verdict import against_pooled, verdict
from lab.text import printable_content


def render(result: Result) -> str:
    """The page as HTML; figures are SVG inside it and nothing is fetched from anywhere."""
    import jinja2

    experiment = toml(result["experiment"])
    result = printable_content(result)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": tables.number,
        "percent": tables.percent,
        "share": lambda value: f"{100 * value:.4g} %",
        "count": lambda value: f"{value:,.0f}",
        "size": _size,
        "shown": tables.shown,
    }
    environment.globals |= {"tables": tables, "detector": tables_detection}
    environment.globals["units"] = units(result)
    return environment.get_template("report.html").render(
        r=result,
        figures=figures(result),
        verdict=verdict(result),
        against_pooled=against_pooled(result),
        when=_day(result),
        toml=experiment,
        colours=COLOURS,
        themes=THEMES,
        names=NAMES,
    )


def toml(experiment: Result) -> str:
    """The experiment as a file that reads as the same experiment; signs that are not seen are TOML's
    escapes."""
    import tomli_w

    text = tomli_w.dumps(_set_keys(experiment))
    return "".join(c if c.isprintable() or c == "\n" else f"\\U{ord(c):08x}" for c in text)


def _set_keys(values: Any) -> Any:
    """Without keys that are not set: TOML has no null."""
    match values:
        case dict():
            return {key: _set_keys(value) for key, value in values.items() if value is not None}
        case list():
            return [_set_keys(value) for value in values]
        case _:
            return values


def _day(result: Result) -> str:
    """When the run was kept, in words; empty for a result that does not say."""
    if "date" not in result:
        return ""
    day = datetime.fromisoformat(result["date"])
    return f"{day.day} {day:%B %Y, %H:%M} UTC"


def _size(value: float) -> str:
    for unit in ("bytes", "KB", "MB"):
        if value < 1000:
            return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:,.1f} {unit}"
        value /= 1000
    return f"{value:,.1f} GB"
