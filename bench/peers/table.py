"""Page of the peer comparison: ``docs/benchmarks.md``, written from the results. No figure is typed by hand."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from bench.peers.peers import BUDGETS, CONTENDERS, ENVIRONMENTS, SERVERS, TOOLS, Contender, budget_name
from bench.peers.results import Results, Row
from edgetl.core.files.atomic import write_text

INTRODUCTION = """\
# Comparison with other tools

The same network, the same images, one host. `python -m bench.peers --work DIR` installs each tool in its own environment and
measures it. `python -m bench.peers table` writes this page from the results in `bench/peers/results/`.

The network is an ImageNet MobileNetV2 at 224 px, fine-tuned on photographs of waste (trashnet, 6 classes). All tools get the same
weights, as a timm folder, an ONNX file or an OpenVINO file. Ultralytics cannot load them: it runs its own, smaller network,
YOLO11n-cls, with random weights.
"""


def write_page(results: Results, page: Path) -> None:
    """Write the page."""
    parts = [INTRODUCTION, _host(results), _inference(results), _network(results), _servers(results), _sizes(results)]
    parts += [_int8(results), _training(results), _commands(results)]
    page.parent.mkdir(parents=True, exist_ok=True)
    write_text(page, "\n".join(parts))


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _host(results: Results) -> str:
    measured = [row for kind in ("latency", "server") for row in results.of_kind(kind) if "host" in row]
    if not measured:
        return "The latencies have not been measured yet.\n"
    problems = sorted({text for row in measured for text in row["problems"]})
    # The load average covers the minute before the measurement, in which other programs may have run.
    host = re.sub(r"; load [\d.]+", "", measured[0]["host"])
    lines = [f"Measured on {measured[0]['date']}: {host}.\n"]
    lines += [f"The latencies are not valid: {'; '.join(problems)}.\n"] if problems else []
    return "\n".join(lines)


def _reason(row: Row | None) -> str:
    return "not measured" if row is None else f"not measured: {row['reason']}"


def _median(values: object) -> float:
    return float(np.median(np.asarray(values, float)))


def ratio(row: Row, reference: Row, field: str) -> float:
    """Return the median over the rounds of the ratio to the reference: its median in a round divided by that of the reference."""
    mine, other = (np.asarray(item[field], float) for item in (row, reference))
    if mine.ndim == 2:
        mine, other = np.median(mine, axis=1), np.median(other, axis=1)
    count = min(len(mine), len(other))
    return float(np.median(mine[:count] / other[:count]))


def _inference(results: Results) -> str:
    header = ["", "JPEG to label, ms", "ratio", "p95, ms", "cold start, s", "ratio", "peak memory, MB", "images/s, all cores"]

    def cells(contender: Contender) -> list[str]:
        row, reference = results.get("latency", contender.title), results.get("latency", contender.reference)
        if row is None or "reason" in row:
            return [contender.title, _reason(row), *[""] * (len(header) - 2)]
        slower, later = ("", "")
        if reference and "latency_ms" in reference and contender.title != contender.reference:
            slower, later = (f"{ratio(row, reference, field):.2f}" for field in ("latency_ms", "cold_start_s"))
        return [
            contender.title,
            f"{_median(row['latency_ms']):.2f}",
            slower,
            f"{np.percentile(row['latency_ms'], 95):.2f}",
            f"{_median(row['cold_start_s']):.2f}",
            later,
            f"{_median(row['cold_rss_mb']):.0f}",
            f"{_median(row['images_per_s']):.0f}",
        ]

    explained = """\
## Inference

Photographs of 640 × 480 px, one thread, all tools in turn in each round. Ratios divide by the row of edgetl with the same engine
and precision, per round: above 1, edgetl is faster. Cold start is the time from the start of a new process to the label of the
first image, with files in the cache of the system. Peak memory is that of the same process. Throughput uses batches of 16 and one
thread per core.

"""
    return explained + markdown_table(header, (cells(item) for item in CONTENDERS)) + _notes(results)


def _notes(results: Results) -> str:
    """List the peers that lead edgetl by more than the noise, with the reasons."""
    lines = []
    for contender in CONTENDERS:
        row, reference = results.get("latency", contender.title), results.get("latency", contender.reference)
        if contender.environment.startswith("edgetl") or not row or not reference or "reason" in row or "reason" in reference:
            continue
        values = {field: ratio(row, reference, field) for field in NAMES}
        fields = [field for field, value in values.items() if (value if field == "images_per_s" else 1 / value) > 1 + NOISE]
        figures = ", ".join(f"{NAMES[field]} {values[field]:.2f}" for field in fields)
        reasons = dict.fromkeys(WHY.get((contender.environment, field)) or WHY.get(("", field), "No reason was found.") for field in fields)
        lines += [f"- {contender.title}: {figures} of edgetl's. {' '.join(reasons)}\n"] if fields else []
    return f"\nPeers that lead edgetl by more than {100 * NOISE:.0f} %:\n\n" + "".join(lines) if lines else ""


NOISE = 0.02
NAMES = {"latency_ms": "latency", "cold_start_s": "cold start", "cold_rss_mb": "peak memory", "images_per_s": "throughput"}
_IMPORTS = (
    "Plain code checks no hashes and no manifest. edgetl imports pydantic and builds the data models of the manifest. "
    "Building each model at its first use was tried, and changed neither time nor memory."
)
_OPENCV = "OpenCV decodes the JPEG, and the resize has no antialiasing, which changes pixels. Compare the row with scaled decoding."
_SMALLER = "Its network is smaller: the next table has the time of the network alone. OpenCV decodes the JPEG."
WHY: dict[tuple[str, str], str] = {
    ("", "cold_start_s"): _IMPORTS,
    ("", "cold_rss_mb"): _IMPORTS,
    ("model-api", "latency_ms"): _OPENCV,
    ("model-api", "images_per_s"): _OPENCV,
    ("ultralytics", "latency_ms"): _SMALLER,
    ("ultralytics", "images_per_s"): _SMALLER,
}


def _network(results: Results) -> str:
    header = ["", "network alone, ms", "ratio"]
    rows = []
    for contender in CONTENDERS:
        row, reference = results.get("latency", contender.title), results.get("latency", contender.reference)
        if row and reference and row.get("network_ms") and row["network_ms"][0] and "network_ms" in reference:
            own = contender.title == contender.reference
            rows.append([contender.title, f"{_median(row['network_ms']):.2f}", "" if own else f"{ratio(row, reference, 'network_ms'):.2f}"])
    other = results.of_kind("benchmark_app")
    rows += [[row["key"], _reason(row) if "reason" in row else f"{row['median_ms']:.2f}", ""] for row in other]
    explained = "\n## Network alone\n\nA ready tensor of one image, one thread. `benchmark_app` is the tool of OpenVINO, synchronous.\n\n"
    return explained + markdown_table(header, rows)


def _servers(results: Results) -> str:
    header = ["", "1 connection, ms", "p95, ms", "8 connections, requests/s", "ratio", "start, s", "memory, MB"]
    reference = results.get("server", SERVERS[0].title)
    rows = []
    for server in SERVERS:
        row = results.get("server", server.title)
        if row is None or "reason" in row:
            rows.append([server.title, _reason(row), *[""] * (len(header) - 2)])
            continue
        own = row is reference or reference is None or "reason" in reference
        rows.append(
            [
                server.title,
                f"{_median(row['latency_ms']):.2f}",
                f"{np.percentile(row['latency_ms'], 95):.2f}",
                f"{_median(row['requests_per_s']):.1f}",
                "" if own or reference is None else f"{1 / ratio(row, reference, 'requests_per_s'):.2f}",
                f"{row['start_s']:.2f}",
                f"{row['rss_mb']:.0f}",
            ]
        )
    rows += [[item.name, f"not installed: {item.missing}", *[""] * (len(header) - 2)] for item in ENVIRONMENTS if item.missing]
    explained = """
## Servers

The network in fp32 with ONNX Runtime, and as many workers as cores. The peers run plain code around ONNX Runtime. Latency is the
median with one connection. Memory is that of all processes. The ratio divides the throughput of edgetl by that of the row: above
1, edgetl is faster.

"""
    why = """
`edgetl serve` starts later and takes more memory than plain FastAPI. It tries the bundle in a process first, and verifies
the golden images. It predicts in worker processes: a crash of the engine or a hostile image does not end the server.
"""
    return explained + markdown_table(header, rows) + why


def _sizes(results: Results) -> str:
    header = ["", "installed, MB", "without GPU packages, MB", "versions"]
    rows = []
    for environment in ENVIRONMENTS:
        row = results.get("environment", environment.name)
        if row is None or "reason" in row:
            reason = f"cannot be installed: {row['reason']}" if row else "not installed yet"
            rows.append([environment.name, reason, "", ""])
        else:
            versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
            rows.append([environment.name, str(row["size_mb"]), str(row["without_gpu_mb"]), versions])
    explained = """
## Installed size

What `pip install` puts into an empty environment, with the byte code of the modules that the measurement imported. On Linux,
PyTorch brings CUDA packages; a CPU build of PyTorch needs another index. The third column leaves them out.

"""
    why = """
edgetl takes more space than plain code with the same engine. It adds cryptography (signatures), pydantic (manifest), and typer with
rich (command line).
"""
    return explained + markdown_table(header, rows) + why


def _int8(results: Results) -> str:
    header = ["", "fp32", "int8", "difference", "test images"]
    rows = []
    for contender in CONTENDERS:
        row = results.get("accuracy", contender.title)
        if contender.precision != "int8" or contender.environment == "ultralytics":
            continue
        before = results.get("accuracy", contender.title.replace("int8", "fp32"))
        if row is None or before is None or "reason" in row or "reason" in before:
            rows.append([contender.title.removesuffix(", int8"), _reason(row), "", "", ""])
            continue
        change = 100 * (row["accuracy"] - before["accuracy"])
        cells = [f"{before['accuracy']:.4f}", f"{row['accuracy']:.4f}", f"{change:+.2f} points", str(row["n"])]
        rows.append([contender.title.removesuffix(", int8"), *cells])
    explained = """
## Accuracy before and after int8

Test accuracy through the whole path of each tool, from the JPEG file. All calibrate with the same 300 training images: ONNX
Runtime with its static quantization, OpenVINO and Model API with NNCF, Optimum with its quantizers, edgetl with `edgetl export`.
PyTorch and timm have no int8 tool of their own. The network of Ultralytics has
random weights.

"""
    return explained + markdown_table(header, rows)


def _training(results: Results) -> str:
    done = [row for row in results.of_kind("training") if "accuracy" in row]
    sets = list(dict.fromkeys(row["set"] for row in done))
    parts = ["\n## Training\n\n" + TRAINING]
    for budget in BUDGETS:
        parts += [f"### {budget_name(budget).capitalize()}\n"]
        mine = [row for row in done if row["budget"] == budget_name(budget)]
        if not mine:
            parts += ["Not measured yet. The command continues from the results.\n"]
            continue
        header = ["", *sets, "mean", "edgetl minus tool, points", "runs", "CPU time, s"]
        parts += [markdown_table(header, [_training_row(tool.title, mine, sets) for tool in TOOLS if budget in tool.budgets])]
        ahead = [tool.title for tool in TOOLS[1:] if np.mean(paired_differences(tool.title, mine) or 0) < 0]
        parts += [f"More accurate than the default of edgetl: {'; '.join(ahead)}. {WHY_TRAINING}\n"] if ahead else []
    lines = sorted({f"- {row['tool']}: {row['settings']}\n" for row in done if not row["tool"].startswith("edgetl")})
    failed = {row["tool"]: row["reason"] for row in results.of_kind("training") if "reason" in row}
    lines += [f"- {tool}, failed: {reason}\n" for tool, reason in failed.items()]
    return "\n".join([*parts, "".join(lines)])


TRAINING = """\
Test accuracy with 10 labeled images per class, 100 per class (or all, if there are fewer), and all. Input 128 px, the same
ImageNet MobileNetV2, three seeds. A quarter of each class is the test set, the same for all tools. Each tool selects its
validation images from the training images. `edgetl train` runs with its defaults, and with `--strategy partial`: `auto` trains
only a head on fewer than 100 images. Ultralytics is missing, because it cannot load these weights. Differences are means over
the runs with the same images and seed that both have finished. CPU time is the median of the training with its imports, on a
host with other work.
"""
WHY_TRAINING = "`auto` trains only a head on fewer than 100 images, which takes less than half of the CPU time of `partial`."


def paired_differences(tool: str, rows: Sequence[Row]) -> list[float]:
    """Return the accuracy of edgetl minus that of a tool, for each set and seed that both have finished."""
    reference = {(row["set"], row["seed"]): row["accuracy"] for row in rows if row["tool"] == TOOLS[0].title}
    mine = [row for row in rows if row["tool"] == tool and (row["set"], row["seed"]) in reference]
    return [reference[row["set"], row["seed"]] - row["accuracy"] for row in mine]


def _training_row(tool: str, rows: Sequence[Row], sets: Sequence[str]) -> list[str]:
    mine = [row for row in rows if row["tool"] == tool]
    if not mine:
        return [tool, *["not measured" for _ in sets], "", "", "0", ""]
    means = [[row["accuracy"] for row in mine if row["set"] == name] for name in sets]
    cells = [f"{np.mean(found):.3f}" if found else "not measured" for found in means]
    whole = f"{np.mean([np.mean(found) for found in means]):.3f}" if all(means) else ""
    pairs = paired_differences(tool, rows)
    difference = f"{100 * np.mean(pairs):+.1f}, n = {len(pairs)}" if pairs and tool != TOOLS[0].title else ""
    return [tool, *cells, whole, difference, str(len(mine)), f"{_median([row['cpu_s'] for row in mine]):.0f}"]


def _commands(results: Results) -> str:
    lines = [f"{row['command']}  # {row['date']}" for row in results.of_kind("environment") if row["command"]]
    return "\n## Commands\n\n```text\n" + "\n".join(lines) + "\n```\n"
