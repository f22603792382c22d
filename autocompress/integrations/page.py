"""Pages of HTML that need nothing else: one frame, numbers as people write them, tables that sort, bars and lines."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

FRAME = Path(__file__).with_name("page.html")
# Of a chart of lines, in CSS pixels: a phone shows it at about this size.
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360, 210, 52, 14, 10, 34
# What differs by such a factor is shown on a logarithmic axis.
LOG_FACTOR = 20.0
MAX_TICKS = 6


def whole_page(title: str, body: str) -> str:
    """Returns a page that loads nothing; `body` is HTML."""
    return Template(FRAME.read_text(encoding="utf-8")).substitute(title=escape(title), body=body)


def number(value: float) -> str:
    """Returns a number in four digits at most, thousands apart.

    >>> [number(v) for v in (1234567, 49987.0, 12.345, 0.98765, 0.00001234, 0, float("nan"))]
    ['1,234,567', '49,987', '12.35', '0.9877', '1.234e-05', '0', 'not a number']
    """
    if not math.isfinite(value):
        return "infinite" if math.isinf(value) else "not a number"
    if float(value).is_integer() or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def size(size_bytes: float) -> str:
    """Returns bytes in the largest unit of 1000 that they fill, in three digits.

    >>> [size(v) for v in (0, 3999, 49987, 1_726_320)]
    ['0 bytes', '4.00 KB', '50.0 KB', '1.73 MB']
    """
    power = min(int(math.log10(size_bytes) // 3), 3) if size_bytes >= 1000 else 0
    if not power:
        return f"{size_bytes:.0f} bytes"
    value = size_bytes / 1000**power
    return f"{value:.{max(0, 2 - int(math.log10(value)))}f} {('KB', 'MB', 'GB')[power - 1]}"


def percent(fraction: float | None, digits: int = 2) -> str:
    """Returns a fraction of 1 in percent, such as `98.61 %`."""
    if fraction is None:
        return "not known"
    return f"{100 * fraction:.{digits}f} %" if math.isfinite(fraction) else number(fraction)


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its text, and the number that it is sorted by; None = by the text."""

    text: str
    value: float | None = None


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Returns a table whose columns sort; one of texts is aligned to the left."""
    words = [all(row[column].value is None for row in rows) for column in range(len(head))]
    marks = [' class="word"' if word else "" for word in words]
    top = "".join(
        f'<th scope="col"{mark}><button type="button">{escape(name)}</button></th>'
        for name, mark in zip(head, marks, strict=True)
    )
    body = "\n".join(
        "<tr>"
        + "".join(
            f'<td{mark} data-value="{escape(cell.text if word else "" if cell.value is None else repr(cell.value))}">'
            f"{escape(cell.text)}</td>"
            for cell, mark, word in zip(row, marks, words, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="box" tabindex="0" role="region" aria-label="{escape(title)}">\n<table>\n<thead><tr>{top}</tr>'
        f"</thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>"
    )


def _breakable(name: str) -> str:
    """Returns a name that breaks at its dots where it is too long for a line."""
    return escape(name).replace(".", ".<wbr>")


@dataclass(frozen=True)
class Bar:
    """A row of a chart of bars.

    Attributes:
        name: on the left.
        parts: lengths of its bars, by the chart's parts.
        text: on the right.
        tip: where the pointer rests.
    """

    name: str
    parts: tuple[float, ...]
    text: str
    tip: str = ""


def bars(title: str, caption: str, parts: Sequence[str], rows: Sequence[Bar], *, full: float | None = None) -> str:
    """Returns a chart of horizontal bars.

    Args:
        title, caption: above and below it.
        parts: names of the parts of a bar, in a row.
        rows: from top to bottom.
        full: the value at full length; default: the longest bar's. Parts stand in a row.
    """
    longest = full or max((sum(row.parts) for row in rows), default=0.0) or 1.0
    lines = []
    for row in rows:
        inner = "".join(
            f'<i class="p{place}" style="width:{100 * part / longest:.3f}%"></i>'
            for place, part in enumerate(row.parts)
            if part > 0
        )
        tip = escape(row.tip or f"{row.name}: {row.text}")
        lines.append(
            f'<span>{_breakable(row.name)}</span><div class="track" title="{tip}"><div>{inner}</div></div>'
            f"<b>{escape(row.text)}</b>"
        )
    return _figure(title, caption, parts, f'<div class="bars">{"".join(lines)}</div>')


def pairs(title: str, caption: str, parts: Sequence[str], rows: Sequence[Bar]) -> str:
    """Returns a chart of bars in which each row has its parts below one another, to be compared."""
    longest = max((part for row in rows for part in row.parts), default=0.0) or 1.0
    lines = []
    for row in rows:
        inner = "".join(
            f'<div><i class="p{place}" style="width:{100 * part / longest:.3f}%"></i></div>'
            for place, part in enumerate(row.parts)
        )
        tip = escape(row.tip or f"{row.name}: {row.text}")
        lines.append(
            f'<span>{_breakable(row.name)}</span><div class="track pair" title="{tip}">{inner}</div>'
            f"<b>{escape(row.text)}</b>"
        )
    return _figure(title, caption, parts, f'<div class="bars">{"".join(lines)}</div>')


@dataclass(frozen=True)
class Line:
    """Points of a chart of lines, ascending in x.

    Attributes:
        name: in the key.
        x, y: finite numbers, equally many.
        kind: "line" joins the points, "dots" does not.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    kind: str = "line"


def lines(
    title: str, caption: str, series: Sequence[Line], x_name: str, *, in_percent: bool = False, log_x: bool = False
) -> str:
    """Returns a chart of lines over one x axis; the y axis is logarithmic where values differ by factors."""
    xs = [x for line in series for x in line.x]
    ys = [y for line in series for y in line.y]
    log_y = not in_percent and min(ys) > 0 and max(ys) > LOG_FACTOR * min(ys)
    across, below = _Scale(xs, LEFT, WIDTH - RIGHT, log=log_x), _Scale(ys, HEIGHT - BOTTOM, TOP, log=log_y)
    marks = []
    for tick in below.ticks():
        y, text = below(tick), percent(tick, _digits(below)) if in_percent else _short(tick)
        marks.append(f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        marks.append(f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    for tick in across.ticks():
        anchor = "end" if across(tick) > WIDTH - RIGHT - 12 else "middle"
        marks.append(f'<text x="{across(tick):.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="{anchor}">')
        marks.append(f"{_short(tick)}</text>")
    middle = (LEFT + WIDTH - RIGHT) / 2
    marks.append(f'<text x="{middle:.0f}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_name)}</text>')
    for place, line in enumerate(series):
        points = [(across(x), below(y), x, y) for x, y in zip(line.x, line.y, strict=True)]
        if line.kind == "line" and len(points) > 1:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y, *_ in points)
            marks.append(f'<polyline class="line p{place}" points="{path}"/>')
        if line.kind != "line" or len(points) <= 40:
            marks += [
                f'<circle class="dot p{place}" cx="{left:.1f}" cy="{top:.1f}" r="2.6"><title>{escape(line.name)}: '
                f"{percent(y) if in_percent else number(y)} at {number(x)}</title></circle>"
                for left, top, x, y in points
            ]
    drawing = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(marks)}</svg>'
    return _figure(title, caption, [line.name for line in series] if len(series) > 1 else [], drawing)


def standalone(figure: str) -> str:
    """Returns the drawing in a chart of lines as an SVG file of its own."""
    start, end = figure.find("<svg"), figure.rfind("</svg>")
    style = (
        "<style>text{font:11px sans-serif;fill:#24292f}.rule{stroke:#d8dee4}.line{fill:none;stroke-width:1.6}"
        ".p0{stroke:#0072b2;fill:#0072b2}.p1{stroke:#d55e00;fill:#d55e00}.line.p0,.line.p1{fill:none}</style>"
    )
    drawing = figure[start:end].replace(">", f' xmlns="http://www.w3.org/2000/svg" width="720">{style}', 1)
    return f"{drawing}</svg>\n" if start >= 0 else '<svg xmlns="http://www.w3.org/2000/svg"/>\n'


class _Scale:
    """From values to places on the page."""

    def __init__(self, values: Sequence[float], start: float, end: float, *, log: bool) -> None:
        self.log, self.start, self.end = log, start, end
        low, high = min(values), max(values)
        if low == high:  # one value stands in the middle
            low, high = (low / 1.1, high * 1.1) if log else (low - (abs(low) or 1) / 10, high + (abs(high) or 1) / 10)
        self.low, self.high = low, high

    def __call__(self, value: float) -> float:
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (at - low) / (high - low)

    def ticks(self) -> list[float]:
        """Returns round numbers within the range."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for digits in ((1, 2, 5), (1, 3), (1,)):
                found = [d * 10.0**p for p in powers for d in digits if self.low <= d * 10.0**p <= self.high]
                if len(found) <= MAX_TICKS:
                    break
            return found[:: -(-len(found) // MAX_TICKS)] if len(found) > 1 else [self.low, self.high]
        step = self.step()
        return [n * step for n in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)]

    def step(self) -> float:
        """Returns the distance of ticks of a linear axis: 1, 2 or 5 times a power of ten."""
        rough = (self.high - self.low) / (MAX_TICKS - 1)
        power = 10.0 ** math.floor(math.log10(rough))
        return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= rough * 0.999)


def _digits(scale: _Scale) -> int:
    """Returns the decimals that tell the ticks of an axis in percent apart."""
    return max(0, -math.floor(math.log10(100 * scale.step()) + 1e-9))


def _short(value: float) -> str:
    """Returns a number for an axis: 20,000 as 20k."""
    for unit, power in (("M", 1e6), ("k", 1e3)):
        if abs(value) >= power:
            return f"{value / power:.4g}{unit}"
    return f"{value:.4g}"


def _figure(title: str, caption: str, parts: Sequence[str], drawing: str) -> str:
    keys = "".join(f'<span class="p{place}">{escape(part)}</span>' for place, part in enumerate(parts))
    key = f'<div class="key">{keys}</div>' if keys else ""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>\n<h3>{escape(title)}</h3>\n{key}{drawing}\n{below}</figure>"


def cards(values: Sequence[tuple[str, str]]) -> str:
    """Returns numbers that stand out, each with what it is."""
    each = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for name, value in values)
    return f'<div class="cards">{each}</div>'


def facts(values: Sequence[tuple[str, str]]) -> str:
    """Returns a list of names and values."""
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(value)}</dd>' for name, value in values)}</dl>"


def to_json(answer: Mapping[str, object]) -> str:
    """Returns one JSON object on one line; a number that JSON does not have (nan, inf) becomes null."""
    return json.dumps(_plain(answer), allow_nan=False)


def _plain(value: object) -> object:
    """Returns `value` with what JSON does not have replaced."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def accuracy_lines(answer: Mapping[str, Any]) -> list[str]:
    """Returns the scores as text; the reference's is of the test data where there are some."""
    metric = answer.get("metric", "accuracy")

    def text(key: str) -> str:
        value = answer[key]
        return percent(value) if metric == "accuracy" else "None" if value is None else f"{value:.5g}"

    reference = f", reference {text('reference_accuracy')}"
    validation = f"validation {metric}  {text('validation_accuracy')}"
    if answer["test_accuracy"] is None:
        return [validation + reference]
    return [validation, f"{f'test {metric}':<{len(validation.partition('  ')[0])}}  {text('test_accuracy')}{reference}"]
