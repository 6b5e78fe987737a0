"""Growth of times with size: fitted exponents, and a log-log plot.

``python -m bench.growth [FILE]``. FILE is a result of ``make bench``; by default it is the newest one. The plot is written beside it. The
exponent is the slope of a straight line through the logarithms of sizes and times: 1 is proportional to the size, 0 is constant. The time
is that of the fastest round, which other programs disturb least.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, StrMethodFormatter

RESULTS = Path(__file__).parents[1] / ".benchmarks"
SUITE = "test_growth.py"


@dataclass(frozen=True)
class Curve:
    """Times of one benchmark by size.

    Attributes:
        title: benchmark, such as ``inference by batch``.
        label: other parameters of the benchmark, such as ``onnx-fp32``.
        sizes: sizes, increasing.
        seconds: time of the fastest round of each size, seconds.
    """

    title: str
    label: str
    sizes: tuple[int, ...]
    seconds: tuple[float, ...]

    @property
    def exponent(self) -> float | None:
        """Fitted exponent of the growth; None for a single size."""
        return float(np.polyfit(np.log(self.sizes), np.log(self.seconds), 1)[0]) if len(self.sizes) > 1 else None


def main() -> None:
    """Print the exponents and write the plot."""
    parser = argparse.ArgumentParser(prog="python -m bench.growth", description=__doc__)
    parser.add_argument("file", type=Path, nargs="?")
    given = parser.parse_args()
    file = given.file or max(RESULTS.glob("*/*.json"), key=lambda path: path.stat().st_mtime, default=None)
    if file is None:
        parser.exit(2, f"{RESULTS} has no result. Run make bench.\n")
    curves = read_curves(file)
    if not curves:
        parser.exit(2, f"{file} has no benchmark of {SUITE}. Run make bench.\n")
    host = _describe_host(file)
    print(f"{host}\n| growth | sizes | time | exponent |\n|---|---|---|---|")
    for curve in curves:
        exponent = "" if curve.exponent is None else f"{curve.exponent:.2f}"
        times = f"{1e3 * curve.seconds[0]:.3g} to {1e3 * curve.seconds[-1]:.3g} ms"
        print(f"| {', '.join(filter(None, (curve.title, curve.label)))} | {curve.sizes[0]} to {curve.sizes[-1]} | {times} | {exponent} |")
    plot(curves, host).savefig(file.with_suffix(".png"), dpi=120)
    print(f"plot: {file.with_suffix('.png')}")


def read_curves(file: Path) -> list[Curve]:
    """Return the curves of a saved result of pytest-benchmark."""
    points: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    for item in json.loads(file.read_text("utf-8"))["benchmarks"]:
        if SUITE in item["fullname"]:
            title = item["name"].partition("[")[0].removeprefix("test_").replace("_", " ")
            (size,) = (value for value in item["params"].values() if isinstance(value, int))
            label = " ".join(value for value in item["params"].values() if isinstance(value, str))
            points[title, label][size] = item["stats"]["min"]
    return [Curve(*name, tuple(sorted(found)), tuple(found[size] for size in sorted(found))) for name, found in sorted(points.items())]


def _describe_host(file: Path) -> str:
    """Return the host and the time of a result in one line."""
    result = json.loads(file.read_text("utf-8"))
    host = result["machine_info"]["host"]
    return f"{host['cpu']}, {host['cores']} cores, {host['system']}, Python {host['python']}; {result['datetime'][:16]}"


def plot(curves: Sequence[Curve], host: str) -> Figure:
    """Draw one panel with logarithmic axes for each title."""
    titles = list(dict.fromkeys(curve.title for curve in curves))
    columns = min(3, len(titles))
    figure = Figure(figsize=(4.2 * columns, 3.4 * -(-len(titles) // columns)), layout="constrained")
    figure.suptitle(host, fontsize="medium")
    for place, title in enumerate(titles, start=1):
        axes = figure.add_subplot(-(-len(titles) // columns), columns, place)
        for curve in curves:
            if curve.title == title:
                exponent = "" if curve.exponent is None else f"exponent {curve.exponent:.2f}"
                label = ", ".join(filter(None, (curve.label, exponent)))
                axes.loglog(curve.sizes, [1e3 * value for value in curve.seconds], marker="o", label=label)
                axes.set_xticks(curve.sizes, [str(size) for size in curve.sizes])
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.minorticks_off()
        axes.set(title=title, xlabel=title.rpartition(" ")[2], ylabel="time, ms")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return figure


if __name__ == "__main__":
    main()
