"""Axes that people read: percent that zooms in no further than a test set resolves, 1-2-5 ticks on logarithms."""

import math
from collections.abc import Iterable
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MultipleLocator, NullFormatter, StrMethodFormatter

POINTS, EXAMPLES = 5.0, 20  # the least span of an axis in percent: percentage points, and test examples
WIDE = 20.0  # largest value divided by the smallest one, from which an axis is logarithmic


def percent_limits(values: Iterable[float], examples: int = 0, least: float = POINTS) -> tuple[float, float]:
    """Returns limits of an axis in percent such that a few test examples do not look like a trend.

    The axis shows at least `least` percentage points, and at least what EXAMPLES test examples make. It goes beyond 0
    and 100 only by the margin that a marker needs.

    Args:
      values: What is drawn, in percent.
      examples: Number of test examples; 0 if unknown.
      least: Least span in percentage points.
    """
    finite = [value for value in values if math.isfinite(value)] or [0.0, 100.0]
    low, high = min(finite), max(finite)
    span = min(100.0, max(least, 100 * EXAMPLES / examples if examples else 0.0, 1.15 * (high - low)))
    bottom = (
        min(max((low + high - span) / 2, 0.0), 100.0 - span) if low >= 0 and high <= 100 else (low + high - span) / 2
    )
    margin = 0.03 * span
    return bottom - margin, bottom + span + margin


def is_wide(values: Iterable[float]) -> bool:
    """Says whether positive values differ so much that an axis is better logarithmic."""
    values = [value for value in values if math.isfinite(value)]
    return bool(values) and min(values) > 0 and max(values) >= WIDE * min(values)


def logarithmic(axes: Axes, which: Literal["x", "y"]) -> None:
    """Makes an axis logarithmic, with ticks such as 0.1, 0.2, 0.5, 1 over few decades, or powers of 10 over many."""
    axis = getattr(axes, f"{which}axis")
    getattr(axes, f"set_{which}scale")("log")
    low, high = axis.get_view_interval()
    decades = math.log10(high / low) if 0 < low < high else 1.0  # without data, the interval may begin at 0
    axis.set_major_locator(
        LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2.2 else (1.0, 3.0) if decades < 3.2 else (1.0,))
    )
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
    axis.set_minor_formatter(NullFormatter())


def plain(value: float) -> str:
    """Returns a number as a tick label: 0.02, 1, 500, 20,000, 1e-5."""
    if value and abs(value) < 0.001:
        digits, _, exponent = f"{value:.4e}".partition("e")
        return f"{float(digits):g}e{int(exponent)}"
    return f"{value:,.12g}"


def thousands(axes: Axes) -> None:
    """Writes the numbers of the horizontal axis as 12,000."""
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def whole_percent(axes: Axes) -> None:
    """Keeps ticks above 100% and below 0% off the vertical axis, where only its margin is."""
    low, high = axes.get_ylim()
    if high - low > 60:
        axes.yaxis.set_major_locator(MultipleLocator(20))
    ticks = [tick for tick in axes.get_yticks() if -1e-9 <= tick <= 100 + 1e-9 and low <= tick <= high]
    axes.set_yticks(ticks)
