"""How plots are drawn: as PNG and SVG; none where matplotlib is not installed."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

PUBLISHED, OURS = "#c44e52", "#1f5f99"

_STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.fonttype": "path",  # looks the same everywhere
    "svg.hashsalt": "emucsd",  # the same run gives the same bytes
}

Result = dict[str, Any]
Plot = tuple[tuple[float, float], Callable[[Any, Result], None]]  # inches, and what draws a result into a figure


def draw_all(out: Path, result: Result, plots: Mapping[str, Plot]) -> dict[str, tuple[Path, Path]]:
    """Draw every plot into a folder. :returns: name -> (PNG, SVG)"""
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return {}
    drawn = {}
    for name, (size, draw) in plots.items():
        with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
            figure = Figure(figsize=size, layout="constrained")
            FigureCanvasAgg(figure)
            draw(figure, result)
            png, svg = out / f"{name}.png", out / f"{name}.svg"
            figure.savefig(png, dpi=150)
            text = io.StringIO()
            figure.savefig(text, format="svg", metadata={"Date": None})
            svg.write_text(text.getvalue(), encoding="utf-8")
        drawn[name] = (png, svg)
    return drawn


def logarithmic(axes: Any, *, x: bool = False, y: bool = False, unit: str = "") -> None:
    """Logarithmic axes with plain numbers on them."""
    from matplotlib.ticker import LogLocator, NullLocator

    for wanted, axis, name in ((x, axes.xaxis, "x"), (y, axes.yaxis, "y")):
        if wanted:
            getattr(axes, f"set_{name}scale")("log")
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(lambda value, _: f"{value:,.10g}{unit}")


def draw_claims(figure: Any, result: Result) -> None:
    """Published and ours, for the claims that are ratios."""
    claims = [claim for claim in result["claims"] if claim["unit"] == "x"][::-1]
    axes = figure.subplots()
    low, high = zip(*(sorted((c["published"], c["ours"])) for c in claims), strict=True)
    axes.hlines(range(len(claims)), low, high, color="#b8b8b8", linewidth=2)
    places = range(len(claims))
    axes.scatter([c["published"] for c in claims], places, color=PUBLISHED, label="published", zorder=3)
    axes.scatter([c["ours"] for c in claims], places, color=OURS, label="ours", zorder=3)
    logarithmic(axes, x=True, unit="x")
    axes.set_yticks(places, [claim["claim"] for claim in claims])
    axes.grid(axis="x", alpha=0.3)
    axes.legend(ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
    axes.set_title("published ratios and ours", loc="left")
