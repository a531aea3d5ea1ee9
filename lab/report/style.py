"""How every figure of a report looks: colours, marks, line widths, sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

#: What ``result.json`` of a run holds.
Result = dict[str, Any]

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    #: Draws a figure of a result; False where there is nothing to draw.
    Draw = Callable[[Result, Axes], bool]

INK, PALE, LINE = "#1f2a33", "#6b7780", "#d9dee2"


COLOURS = {
    "alone": "#c2703d",
    "without": "#8a8fb5",
    "insurer": "#a6561f",
    "fund": "#2f5f8f",
    "federated": "#0f766e",
    "personal": "#7c5cbf",
    "pooled": "#1f2a33",
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


def resize(axes: Axes, width: float, height: float) -> None:
    """Give the figure another size, in inches."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.set_size_inches(width, height)
