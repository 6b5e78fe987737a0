"""Draw the overview picture of the README and of the documentation: ``python docs/make_pictures.py``.

The figures are those of the benchmark table in ``docs/explanation/measurement.md`` and of the int8 table in
``docs/explanation/quantization-search.md``: a MobileNetV2 with ImageNet weights and a linear probe on 2,527 photographs of waste
(trashnet), on two cores of an AMD EPYC with one thread. ``python -m bench.comparisons.whole_path`` and ``python -m bench.accuracy.int8``
print them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

FOLDER = Path(__file__).parent / "_static"
# Name, milliseconds from JPEG bytes (341 x 256 px) to a label, file size in MB, test accuracy on 378 photographs.
VARIANTS = (
    ("PyTorch", 14.3, None, 0.852),
    ("openvino-fp32", 5.1, 9.1, 0.852),
    ("onnx-fp32", 4.7, 9.1, 0.852),
    ("openvino-int8", 3.3, 2.7, 0.836),
    ("onnx-int8", 3.2, 2.7, 0.857),
)
STAGES = (
    ("images/", "2,527 photographs\n6 classes"),
    ("run/", "weights, splits\naccuracy 0.852"),
    ("bundle/", "4 checked variants\nfrom 2.7 MB"),
    ("device", "no PyTorch\n3.2 ms per image"),
)
COMMANDS = ("edgetl train", "edgetl export", "edgetl predict")


@dataclass(frozen=True)
class Colors:
    """Colors of one theme."""

    name: str
    text: str
    muted: str
    box: str
    bar: str
    reference: str


THEMES = (
    Colors("light", text="#1f2328", muted="#59636e", box="#f0f3f6", bar="#0969da", reference="#8c959f"),
    Colors("dark", text="#f0f6fc", muted="#9198a1", box="#21262d", bar="#4493f8", reference="#6e7681"),
)


def main() -> None:
    """Write ``overview-light.svg`` and ``overview-dark.svg``."""
    # Text as outlines looks the same everywhere; fixed ids and no date keep the files equal between two runs.
    mpl.rcParams.update({"svg.fonttype": "path", "svg.hashsalt": "edgetl", "font.family": "DejaVu Sans", "font.size": 10})
    for colors in THEMES:
        figure = Figure(figsize=(9.2, 4.0))
        draw_stages(figure.add_axes((0.0, 0.6, 1.0, 0.4)), colors)
        draw_latency(figure.add_axes((0.13, 0.12, 0.62, 0.4)), colors)
        figure.savefig(FOLDER / f"overview-{colors.name}.svg", transparent=True, metadata={"Date": None})


def draw_stages(axes: Axes, colors: Colors) -> None:
    """Draw the stages as boxes, joined by arrows with the commands."""
    axes.set(xlim=(0, 100), ylim=(0, 10))
    axes.axis("off")
    width, gap = 16.5, 10.4
    for index, (title, text) in enumerate(STAGES):
        left = 1 + index * (width + gap)
        axes.add_patch(
            FancyBboxPatch((left, 1.5), width, 7, boxstyle="round,pad=0,rounding_size=0.8", mutation_aspect=0.25, fc=colors.box, ec="none")
        )
        axes.text(left + width / 2, 6.9, title, ha="center", va="center", color=colors.text, weight="bold", size=11)
        axes.text(left + width / 2, 3.9, text, ha="center", va="center", color=colors.text, size=9, linespacing=1.5)
        if index < len(COMMANDS):
            axes.add_patch(
                FancyArrowPatch(
                    (left + width + 0.8, 4.4), (left + width + gap - 0.8, 4.4), arrowstyle="-|>", mutation_scale=11, color=colors.muted
                )
            )
            axes.text(
                left + width + gap / 2, 6.0, COMMANDS[index].replace(" ", "\n"), ha="center", va="center", color=colors.muted, size=8.5
            )


def draw_latency(axes: Axes, colors: Colors) -> None:
    """Draw the latency of each variant as a bar, with its file size and accuracy in columns."""
    places = range(len(VARIANTS))
    fills = [colors.reference if size is None else colors.bar for _, _, size, _ in VARIANTS]
    top = len(VARIANTS) - 1
    axes.barh([top - place for place in places], [ms for _, ms, _, _ in VARIANTS], color=fills, height=0.62)
    for place, (_, ms, size, accuracy) in enumerate(VARIANTS):
        axes.text(ms + 0.15, top - place, f"{ms:.1f} ms", va="center", color=colors.text, size=9)
        axes.text(18.6, top - place, "" if size is None else f"{size:.1f} MB", va="center", ha="right", color=colors.text, size=9)
        axes.text(20.6, top - place, f"{accuracy:.3f}", va="center", ha="right", color=colors.text, size=9)
    axes.text(0, top + 0.85, "JPEG to label, one thread", color=colors.muted, size=9)
    axes.text(18.6, top + 0.85, "file", ha="right", color=colors.muted, size=9)
    axes.text(20.6, top + 0.85, "accuracy", ha="right", color=colors.muted, size=9)
    axes.text(0, -1.1, "MobileNetV2, test accuracy on 378 photographs, two cores of an AMD EPYC", color=colors.muted, size=8)
    axes.set(xlim=(0, 16), ylim=(-0.6, top + 0.6), yticks=[top - place for place in places], xticks=[])
    axes.set_yticklabels([name for name, *_ in VARIANTS], color=colors.text, size=9)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)


if __name__ == "__main__":
    main()
