"""How a report looks: the colours of the page and its figures by light and by dark, marks, sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

#: What ``result.json`` of a run holds.
Result = dict[str, Any]

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    #: Draws a figure of a result and says in words what is seen; empty where there is nothing to draw.
    Draw = Callable[[Result, Axes], str]

INK, PALE, LINE, GRID = "#1f2a33", "#56616a", "#d9dee2", "#eef1f3"

#: Arms by colour; each has a contrast of 4.5 and more with what it stands on.
COLOURS = {
    "alone": "#a6561f",
    "without": "#5c6299",
    "insurer": "#97456f",
    "fund": "#2f5f8f",
    "federated": "#0f766e",
    "personal": "#7452b5",
    "pooled": INK,
}

#: Names of the page's colours, each with the one that stands for it on a dark screen.
THEMES = {
    "light": {
        "ink": INK,
        "pale": PALE,
        "line": LINE,
        "grid": GRID,
        "paper": "#fbfbf9",
        "card": "#ffffff",
        **{arm: colour for arm, colour in COLOURS.items() if arm != "pooled"},
        "sealed": "#eaf5f3",
        "sealed-ink": "#0b5750",
        "clear": "#fdeeea",
        "clear-ink": "#7c2d12",
    },
    "dark": {
        "ink": "#e4e9ec",
        "pale": "#a3aeb6",
        "line": "#39434a",
        "grid": "#272f35",
        "paper": "#13181b",
        "card": "#1a2024",
        "alone": "#e39a69",
        "without": "#a9b0de",
        "insurer": "#df97bf",
        "fund": "#86b6e6",
        "federated": "#56c4b5",
        "personal": "#b9a2ee",
        "sealed": "#12302d",
        "sealed-ink": "#9fdcd3",
        "clear": "#3d1c12",
        "clear-ink": "#ffbfa5",
    },
}

MARKS = {
    "alone": "o",
    "without": "s",
    "insurer": "o",
    "fund": "s",
    "federated": "D",
    "personal": "^",
    "pooled": "|",
}


#: Scores that arms are compared by, as people call them.
NAMES = {"deviance_explained": "deviance explained", "average_precision": "PR-AUC"}


def units(result: Result) -> str:
    """What the rows of a detector are: claims, or the persons that joined sides have in common."""
    return "persons" if result["experiment"].get("joined") else "claims"


def judged(result: Result) -> str:
    """The rows that scores are of."""
    return "training rows, in sample" if result["data"]["in_sample"] else "test rows"


def themed(svg: str) -> str:
    """A figure whose colours follow the page's."""
    for name, colour in THEMES["light"].items():
        if name in ("ink", "pale", "line", "grid", *COLOURS):
            svg = svg.replace(colour, f"var(--{name})")
    return svg


def resize(axes: Axes, width: float, height: float) -> None:
    """Give the figure another size, in inches."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.set_size_inches(width, height)
