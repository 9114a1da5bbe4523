"""A line chart as SVG, written by hand: panels side by side, a log-2 x axis, linear y from 0.

Pure: figures in, text out. The colours are those of Okabe and Ito, which colour-blind people tell apart; every
line has a marker of its own as well.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

PANEL_WIDTH, PANEL_HEIGHT = 400, 270
LEFT, RIGHT, TOP, BOTTOM = 70, 24, 92, 54
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
_MARKERS = (
    "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0Z",
    "M-3.6,-3.6h7.2v7.2h-7.2Z",
    "M0,-4.8L4.6,3.6H-4.6Z",
    "M0,-5.2L5.2,0L0,5.2L-5.2,0Z",
)
_STYLE = """
  text { font: 12px system-ui, 'DejaVu Sans', sans-serif; fill: #333 }
  .title { font-size: 16px; font-weight: 600; fill: #111 }
  .panel { font-size: 13px; font-weight: 600; fill: #111 }
  .tick { fill: #666 }
  .grid { stroke: #e4e4e4 }
  .axis { stroke: #888 }
  .line { fill: none; stroke-width: 2; stroke-linejoin: round }
  .marker { stroke: #fff; stroke-width: 1 }
  .level { stroke: #666; stroke-width: 1.5; stroke-dasharray: 6 4 }
"""


@dataclass(frozen=True, slots=True)
class Line:
    """One line: its name in the legend, its points (x > 0, y >= 0) in the order of x."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Level:
    """A dashed horizontal line."""

    name: str
    y: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One pair of axes. Lines of the same place in two panels look alike."""

    title: str
    lines: Sequence[Line]
    levels: Sequence[Level] = ()


def chart(title: str, panels: Sequence[Panel], *, x_label: str, y_label: str) -> str:
    """Return the SVG document. The legend is that of the first panel."""
    width = len(panels) * (LEFT + PANEL_WIDTH + RIGHT)
    height = TOP + PANEL_HEIGHT + BOTTOM
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{_STYLE}</style>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        _text(LEFT, 28, title, "title"),
        *_legend(panels[0], LEFT, 52),
    ]
    for number, panel in enumerate(panels):
        parts.append(f'<g transform="translate({number * (LEFT + PANEL_WIDTH + RIGHT) + LEFT},{TOP})">')
        parts += _Axes(panel).draw(x_label, y_label)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>", ""])


class _Axes:
    """The scales of one panel; the origin of its coordinates is the upper left corner of the plot."""

    def __init__(self, panel: Panel) -> None:
        self._panel = panel
        self._xs = sorted({x for line in panel.lines for x, _ in line.points})
        ys = [y for line in panel.lines for _, y in line.points] + [level.y for level in panel.levels]
        self._step = _step(max(ys, default=1.0))
        self._top = self._step * math.ceil(max(ys, default=1.0) * 1.02 / self._step)

    def draw(self, x_label: str, y_label: str) -> Iterator[str]:
        """Draw everything, from back to front."""
        yield _text(0, -14, self._panel.title, "panel")
        yield from self._y_axis()
        yield from self._x_axis()
        yield _text(PANEL_WIDTH / 2, PANEL_HEIGHT + 42, x_label, anchor="middle")
        yield (
            f'<text transform="translate({14 - LEFT},{PANEL_HEIGHT / 2}) rotate(-90)" '
            f'text-anchor="middle">{escape(y_label)}</text>'
        )
        for level in self._panel.levels:
            y = self._y(level.y)
            yield f'<line class="level" x1="0" x2="{PANEL_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
        for number, line in enumerate(self._panel.lines):
            yield from self._line(number, line)

    def _x(self, x: float) -> float:
        low, high = math.log2(self._xs[0]), math.log2(self._xs[-1])
        return 12 + (PANEL_WIDTH - 24) * ((math.log2(x) - low) / (high - low) if high > low else 0.5)

    def _y(self, y: float) -> float:
        return PANEL_HEIGHT * (1 - y / self._top)

    def _x_axis(self) -> Iterator[str]:
        yield f'<path class="axis" d="M0,{PANEL_HEIGHT}h{PANEL_WIDTH}"/>'
        for x in self._xs:
            yield f'<path class="axis" d="M{self._x(x):.1f},{PANEL_HEIGHT}v5"/>'
            yield _text(self._x(x), PANEL_HEIGHT + 20, f"{x:g}", "tick", "middle")

    def _y_axis(self) -> Iterator[str]:
        for number in range(round(self._top / self._step) + 1):
            y = number * self._step
            yield f'<path class="grid" d="M0,{self._y(y):.1f}h{PANEL_WIDTH}"/>'
            yield _text(-8, self._y(y) + 4, f"{y:,.10g}", "tick", "end")

    def _line(self, number: int, line: Line) -> Iterator[str]:
        colour, marker = _look(number)
        places = [(self._x(x), self._y(y)) for x, y in line.points]
        corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        yield f'<polyline class="line" stroke="{colour}" points="{corners}"/>'
        for (x, y), (at, value) in zip(places, line.points, strict=True):
            yield (
                f'<path class="marker" fill="{colour}" transform="translate({x:.1f},{y:.1f})" d="{marker}">'
                f"<title>{escape(line.name)}, {at:g}: {value:,.0f}</title></path>"
            )


def _legend(panel: Panel, x: float, y: float) -> Iterator[str]:
    for number, line in enumerate(panel.lines):
        colour, marker = _look(number)
        yield f'<path class="line" stroke="{colour}" d="M{x},{y - 4}h26"/>'
        yield f'<path class="marker" fill="{colour}" transform="translate({x + 13},{y - 4})" d="{marker}"/>'
        yield _text(x + 32, y, line.name)
        x += 32 + _width(line.name)
    for level in panel.levels:
        yield f'<path class="level" d="M{x},{y - 4}h26"/>'
        yield _text(x + 32, y, level.name)
        x += 32 + _width(level.name)


def _look(number: int) -> tuple[str, str]:
    return _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]


def _width(text: str) -> float:
    """Estimate: an SVG does not know how wide its text will be."""
    return 7 * len(text) + 24


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    named = f' class="{kind}"' if kind else ""
    placed = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text{named} x="{x:.1f}" y="{y:.1f}"{placed}>{escape(text)}</text>'


def _step(highest: float) -> float:
    """Choose the distance of the ticks, 1, 2 or 5 times a power of ten, so that there are five or so."""
    rough = max(highest, 1e-9) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
