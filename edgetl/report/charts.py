"""Charts as inline SVG. Colors come from the style sheet, so that the charts follow the light, dark and print styles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from edgetl.core.results import Proportion, ReliabilityBin
from edgetl.report.elements import Child, element

WIDTH, HEIGHT = 440.0, 300.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 14.0, 14.0, 46.0
# Number of colors of the style sheet. More series repeat them.
COLORS = 6
# Longest line with a dot at each point.
_MOST_DOTS = 40
# Space of a number beside a circle.
_NUMBER_RADIUS = 7.0


@dataclass(frozen=True)
class Axis:
    """Axis of a chart: title, and limits of the values."""

    title: str
    low: float
    high: float

    @classmethod
    def around(cls, title: str, values: Sequence[float], *, low: float | None = None, high: float | None = None) -> Axis:
        """Return an axis with all finite values and a margin of 5 %. ``low`` and ``high`` replace the limits."""
        known = [value for value in values if math.isfinite(value)] or [0.0]
        margin = 0.05 * (max(known) - min(known)) or 0.05 * abs(max(known)) or 0.5
        return cls(title, min(known) - margin if low is None else low, max(known) + margin if high is None else high)

    def ticks(self) -> list[float]:
        """Return three to eight round values between the limits: multiples of 1, 2 or 5 times a power of ten."""
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]


@dataclass(frozen=True)
class Series:
    """Line of a chart.

    Attributes:
        name: name in the legend.
        points: x and y of each point. Points that are not finite are left out.
        color: index of the color.
        dashed: draw a dashed line.
    """

    name: str
    points: Sequence[tuple[float, float]]
    color: int
    dashed: bool = False


@dataclass(frozen=True)
class Bubble:
    """Point of a bubble chart: a circle with a number beside it.

    Attributes:
        number: number, as in the table below the chart.
        x: value on the horizontal axis.
        y: value on the vertical axis with its interval.
        area: relative area of the circle, above 0.
        color: index of the color.
        filled: fill the circle, which marks the best points.
    """

    number: int
    x: float
    y: Proportion
    area: float
    color: int
    filled: bool


@dataclass(frozen=True)
class _Plot:
    x: Axis
    y: Axis

    def across(self, value: float) -> float:
        return _LEFT + (value - self.x.low) / (self.x.high - self.x.low) * (WIDTH - _LEFT - _RIGHT)

    def down(self, value: float) -> float:
        return HEIGHT - _BOTTOM - (value - self.y.low) / (self.y.high - self.y.low) * (HEIGHT - _TOP - _BOTTOM)

    def whisker(self, x: float, low: float, high: float, color: int) -> Element:
        """Return a vertical line for an interval."""
        place = self.across(x)
        return element("line", class_=f"whisker c{color % COLORS}", x1=place, x2=place, y1=self.down(low), y2=self.down(high))

    def draw(self, label: str, *marks: Child) -> Element:
        """Return the chart with grid, axes and ``marks``. ``label`` describes it for screen readers."""
        bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
        grid: list[Child] = []
        for value in self.x.ticks():
            place = self.across(value)
            grid.append(element("line", class_="grid", x1=place, x2=place, y1=_TOP, y2=bottom))
            grid.append(element("text", f"{value:g}", x=place, y=bottom + 16, text_anchor="middle"))
        for value in self.y.ticks():
            place = self.down(value)
            grid.append(element("line", class_="grid", x1=_LEFT, x2=right, y1=place, y2=place))
            grid.append(element("text", f"{value:.6g}", x=_LEFT - 7, y=place + 4, text_anchor="end"))
        middle = (_TOP + bottom) / 2
        titles = [
            element("text", self.x.title, class_="axis", x=(_LEFT + right) / 2, y=HEIGHT - 8, text_anchor="middle"),
            element("text", self.y.title, class_="axis", text_anchor="middle", transform=f"translate(13 {middle:.0f}) rotate(-90)"),
        ]
        return element("svg", grid, titles, marks, viewBox=f"0 0 {WIDTH:.0f} {HEIGHT:.0f}", role="img", aria_label=label, class_="chart")


def line_chart(x_title: str, y_title: str, series: Sequence[Series], *, label: str) -> list[Child]:
    """Return a line chart, followed by its legend."""
    finite = [[point for point in line.points if all(map(math.isfinite, point))] for line in series]
    every = [point for points in finite for point in points]
    plot = _Plot(Axis.around(x_title, [x for x, _ in every]), Axis.around(y_title, [y for _, y in every]))
    marks: list[Child] = []
    for line, points in zip(series, finite, strict=True):
        places = [(plot.across(x), plot.down(y)) for x, y in points]
        kind = f"c{line.color % COLORS}{' dashed' if line.dashed else ''}"
        marks.append(element("polyline", class_=f"line {kind}", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in places)))
        if len(places) <= _MOST_DOTS:
            marks.append([element("circle", class_=f"dot {kind}", cx=x, cy=y, r=2.6) for x, y in places])
    return [plot.draw(label, marks), legend([(line.name, line.color, line.dashed) for line in series])]


def legend(entries: Sequence[tuple[str, int, bool]]) -> Element | None:
    """Return the legend for names with their color and true for a dashed line; none for one entry."""
    if len(entries) < 2:
        return None
    rows = [
        element("li", element("span", class_=f"swatch c{color % COLORS}{' dashed' if dashed else ''}", aria_hidden="true"), name)
        for name, color, dashed in entries
    ]
    return element("ul", rows, class_="legend")


def reliability_chart(bins: Sequence[ReliabilityBin], *, label: str) -> Element:
    """Return a reliability diagram: accuracy over mean score of each bin, with intervals. The area of a dot shows its predictions."""
    plot = _Plot(Axis("score", 0.0, 1.0), Axis("accuracy", 0.0, 1.0))
    ends = {"x1": plot.across(0), "y1": plot.down(0), "x2": plot.across(1), "y2": plot.down(1)}
    most = max((item.accuracy.n for item in bins), default=1)
    marks: list[Child] = [element("line", class_="ideal", **ends)]
    for item in bins:
        marks.append(plot.whisker(item.score, item.accuracy.low, item.accuracy.high, 0))
        radius = 2.5 + 7.5 * math.sqrt(item.accuracy.n / most)
        marks.append(element("circle", class_="bubble c0 filled", cx=plot.across(item.score), cy=plot.down(item.accuracy.value), r=radius))
    return plot.draw(label, marks)


def bubble_chart(x_title: str, y_title: str, bubbles: Sequence[Bubble], *, label: str) -> Element:
    """Return a chart of numbered circles with vertical intervals. Numbers do not overlap near circles."""
    ends = [end for item in bubbles for end in (item.y.low, item.y.high)]
    across = Axis.around(x_title, [0.0, 1.05 * max(item.x for item in bubbles)], low=0.0)
    plot = _Plot(across, Axis.around(y_title, ends))
    largest = max(item.area for item in bubbles)
    marks: list[Child] = [plot.whisker(item.x, item.y.low, item.y.high, item.color) for item in bubbles]
    circles = [(plot.across(item.x), plot.down(item.y.value), 4 + 8 * math.sqrt(item.area / largest)) for item in bubbles]
    taken = [(x, y, radius) for x, y, radius in circles]
    texts: list[Child] = []
    for item, (x, y, radius) in sorted(zip(bubbles, circles, strict=True), key=lambda pair: -pair[0].area):
        kind = f"bubble c{item.color % COLORS}{' filled' if item.filled else ''}"
        marks.append(element("circle", class_=kind, cx=x, cy=y, r=radius))
        place = _free_place(x, y, radius + _NUMBER_RADIUS, taken)
        taken.append((*place, _NUMBER_RADIUS))
        texts.append(element("text", str(item.number), class_="number", x=place[0], y=place[1] + 4, text_anchor="middle"))
    return plot.draw(label, marks, texts)


def _free_place(x: float, y: float, distance: float, taken: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """Return a place around a circle where a number overlaps no other circle and number, else the place on its right.

    ``taken`` has the center and radius of each circle and number.
    """
    angles = [math.radians(angle) for angle in (0, 45, -45, 90, -90, 135, -135, 180)]
    places = [(x + far * math.cos(angle), y + far * math.sin(angle)) for far in (distance, 1.6 * distance) for angle in angles]
    for place in places:
        if all(math.dist(place, (other, below)) >= radius + _NUMBER_RADIUS - 1 for other, below, radius in taken):
            return place
    return places[0]


def value_chart(name: str, pairs: Sequence[tuple[float, float]], *, label: str) -> Element:
    """Return a chart of predicted over true numbers, with the line on which they are equal."""
    values = [value for pair in pairs for value in pair]
    plot = _Plot(Axis.around(f"{name}, true", values), Axis.around(f"{name}, predicted", values))
    low, high = plot.x.low, plot.x.high
    ends = {"x1": plot.across(low), "y1": plot.down(low), "x2": plot.across(high), "y2": plot.down(high)}
    known = [pair for pair in pairs if all(map(math.isfinite, pair))]
    dots = [element("circle", class_="dot faint c0", cx=plot.across(x), cy=plot.down(y), r=3.0) for x, y in known]
    return plot.draw(label, element("line", class_="ideal", **ends), dots)


def interval_bar(figure: Proportion, axis: Axis) -> Element:
    """Return a metric as a dot with its interval, for the cell of a table. It repeats the numbers beside it."""
    width, low, high = 160.0, axis.low, axis.high

    def place(value: float) -> float:
        return 4 + (min(max(value, low), high) - low) / (high - low) * (width - 8)

    return element(
        "svg",
        element("line", class_="grid", x1=4.0, x2=width - 4, y1=9.0, y2=9.0),
        element("line", class_="whisker c0", x1=place(figure.low), x2=place(figure.high), y1=9.0, y2=9.0),
        element("circle", class_="dot c0", cx=place(figure.value), cy=9.0, r=4.5),
        viewBox=f"0 0 {width:.0f} 18",
        class_="bar",
        aria_hidden="true",
    )
