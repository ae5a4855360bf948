"""The parts of a report: one HTML file with everything in it, to read in a browser, to print, to pass on."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from emucsd.reproduce.claim import is_near

UNITS = {"%": " %", "R2": "", "x": "x", "": ""}


def page(title: str, parts: Iterable[str]) -> str:
    """The whole page."""
    style = files("emucsd.reproduce").joinpath("report.css").read_text(encoding="utf-8")
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{text(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{style}</style></head>'
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def text(value: Any) -> str:
    """Escaped."""
    return html.escape(str(value))


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """:param rows: cells as HTML; columns of numbers have their heads on the right, too"""
    lines = list(rows)
    numbers = [one.startswith('<td class="number') for one in lines[0]] if lines else [False] * len(heads)
    top = "".join(
        f'<th class="{"number" if number else ""}">{head}</th>' for head, number in zip(heads, numbers, strict=True)
    )
    body = "\n".join("<tr>" + "".join(cells) + "</tr>" for cells in lines)
    return (
        f'<div class="wide"><table class="{kind}"><thead><tr>{top}</tr></thead><tbody>\n{body}\n</tbody></table></div>'
    )


def cell(value: Any, kind: str = "") -> str:
    """A table's cell, of a class."""
    return f'<td class="{kind}">{text(value)}</td>' if kind else f"<td>{text(value)}</td>"


def figure(name: str, plots: dict[str, Path], captions: dict[str, str]) -> str:
    """A plot with its caption; nothing where it was not drawn. :param plots: name -> SVG file"""
    if name not in plots:
        return ""
    drawn = plots[name].read_text(encoding="utf-8")
    svg = _apart(drawn[drawn.index("<svg") :], name)
    return f"<figure>{svg}<figcaption>{text(captions.get(name, ''))}</figcaption></figure>"


def _apart(svg: str, name: str) -> str:
    """Ids that are other in each plot: they share one page."""
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    return re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)


def shown(value: float, unit: str) -> str:
    """A figure with its unit; ``holds`` is of claims without one."""
    if unit in ("R2", "ratio"):
        return f"{value:.5f}" if unit == "R2" else f"{value:.4f}"
    if unit == "holds":
        return "holds" if value else "does not"
    return f"{value:.3g}{UNITS.get(unit, ' ' + unit)}"


def claims_table(claims: Sequence[dict[str, Any]]) -> str:
    """What is published, what comes out here, and what was found."""
    rows = [
        (
            f"<td>{text(claim['claim'])}<div class='source'>{text(claim['source'])}</div></td>",
            cell(shown(claim["published"], claim["unit"]), "number"),
            cell(shown(claim["ours"], claim["unit"]), "number"),
            cell(f"{claim['deviation']:+.0%}", f"number {'near' if is_near(claim) else 'far'}"),
            cell(claim["note"], "note"),
        )
        for claim in claims
    ]
    return table(("claim", "published", "ours", "deviation", "what was found"), rows, "claims")


def records(rows: Sequence[dict[str, Any]]) -> str:
    """A list of records as a table."""
    heads = [key for key, value in rows[0].items() if not isinstance(value, dict | list)]
    cells = [[_value_cell(row.get(key)) for key in heads] for row in rows]
    return table([words(head) for head in heads], cells)


def words(name: str) -> str:
    """A key as people write it."""
    return text(name.replace("_", " "))


def _value_cell(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return cell("" if value is None else value)
    return cell(f"{value:.4g}" if isinstance(value, float) else f"{value:,}", "number")


def parameters_table(parameters: Sequence[dict[str, Any]]) -> str:
    """Each with its value, unit, what it is, why it is so, and how sure that is."""
    rows = [
        (
            cell(p["name"]),
            cell(f"{p['value']:g}", "number"),
            cell(p["unit"]),
            f"<td>{text(p['what'])}<div class='source'>{text(p['reason'])} ({text(p['sure'])})</div></td>",
        )
        for p in parameters
    ]
    return table(("parameter", "value", "unit", "what, and why"), rows)


def environment(result: dict[str, Any]) -> str:
    """The machine of a run."""
    machine = {**result["environment"], **{key: result[key] for key in ("seconds", "seed", "clock")}}
    items = "".join(f"<dt>{words(name)}</dt><dd>{text(value)}</dd>" for name, value in machine.items())
    return f"<dl>{items}</dl>"
