"""systemd unit, Dockerfile, and commands in the serving guides."""

from __future__ import annotations

import configparser
import json
import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from edgetl.cli.app import app
from edgetl.core.bundle import Bundle

ROOT = Path(__file__).parents[2]
DOCUMENTS = (ROOT / "docs" / "how-to" / "serving.md", ROOT / "docs" / "how-to" / "containers.md")
UNIT = ROOT / "packaging" / "edgetl.service"
DOCKERFILE = ROOT / "Dockerfile"
# First words of commands of other programs in the guides.
_OTHER_PROGRAMS = ("curl", "openssl", "docker run", "docker build", "pip ")


def _documents() -> str:
    return "\n".join(path.read_text("utf-8") for path in DOCUMENTS)


def _options(command: str) -> set[str]:
    """Return all options of a command of edgetl."""
    parameters = get_command(app).commands[command].params  # type: ignore[attr-defined]
    return {option for parameter in parameters for option in [*parameter.opts, *parameter.secondary_opts] if option.startswith("--")}


def _unit() -> configparser.ConfigParser:
    # Repeated keys are lists in a unit. The parser keeps the last value, which is enough here.
    unit = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",), comment_prefixes=("#", ";"))
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(UNIT.read_text("utf-8"))
    return unit


def test_unit_uses_existing_options() -> None:
    program, command, bundle, *rest = shlex.split(_unit()["Service"]["ExecStart"])
    assert Path(program).name == "edgetl" and command == "serve" and Path(bundle).is_absolute()
    comments = [word for line in UNIT.read_text("utf-8").splitlines() if "EDGETL_OPTIONS=--" in line for word in shlex.split(line, True)]
    used = {word for word in [*rest, *" ".join(comments).split()] if word.startswith("--")}
    assert "--watch" in used and used <= _options("serve")


def test_unit_allows_graceful_shutdown_and_worker_replacement() -> None:
    from edgetl.serve.run import DRAIN_S, NOT_READY_S

    service = _unit()["Service"]
    assert int(service["TimeoutStopSec"]) > DRAIN_S + NOT_READY_S
    assert service["KillMode"] == "mixed" and service["OOMPolicy"] == "continue" and service["Restart"] == "always"
    assert "AF_UNIX" in service["RestrictAddressFamilies"].split(), "the server and its workers use socket pairs"
    assert "MemoryDenyWriteExecute" not in service, "inference engines generate machine code"


def test_variant_folder_is_a_model_repository(bundle: Bundle) -> None:
    """OpenVINO Model Server and Triton expect NAME/VERSION/model.onnx, or model.xml with model.bin, and no other files."""
    files = {"onnx": {"model.onnx"}, "openvino": {"model.xml", "model.bin"}}
    variants = bundle.manifest.variants
    assert len(variants) == 6
    for variant in variants:
        folder = bundle.path / f"{variant.format}-{variant.precision}"
        assert folder.name == variant.name and [child.name for child in folder.iterdir()] == ["1"]
        assert {child.name for child in (folder / "1").iterdir()} == files[variant.format]


def test_yaml_blocks_of_the_guides_are_valid() -> None:
    yaml = pytest.importorskip("yaml")
    blocks = re.findall(r"^```yaml\n(.*?)^```", _documents(), re.DOTALL | re.MULTILINE)
    kinds = [value["kind"] for block in blocks for value in yaml.safe_load_all(block)]
    assert kinds == ["Deployment", "Service", "ServingRuntime", "InferenceService"]


def test_options_in_the_guides_exist() -> None:
    text = _documents().replace("\\\n", " ").replace("\n$ ", "\n")
    # In a command of another program, only the options after `serve` belong to edgetl.
    lines = [
        re.split(r"\bserve\b", line)[-1] if line.strip().startswith(_OTHER_PROGRAMS) and " serve " in line else line
        for line in text.splitlines()
    ]
    own_lines = [line for line in lines if not line.strip().startswith(_OTHER_PROGRAMS)]
    used = {option for line in own_lines for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", line)}
    assert len(used) > 12
    known = _options("serve") | _options("export") | _options("predict")
    assert used <= known, used - known


def test_container_image_runs_without_root() -> None:
    lines = [line for line in DOCKERFILE.read_text("utf-8").splitlines() if line and not line.startswith("#")]
    last = {line.split(maxsplit=1)[0]: line.split(maxsplit=1)[1] for line in lines if line[0].isalpha()}
    user = last["USER"].partition(":")[0]
    assert user.isdigit() and int(user) > 0, "runAsNonRoot of Kubernetes requires a numeric user"
    assert last["STOPSIGNAL"] == "SIGTERM"
    assert "VOLUME" not in last, "files that a derived image copies into a volume may be lost"
    check = json.loads(last["HEALTHCHECK"].partition("CMD ")[2])
    assert check[:2] == ["python", "-c"] and "/v2/health/ready" in check[2]
    compile(check[2], "HEALTHCHECK", "exec")
    assert json.loads(last["ENTRYPOINT"]) == ["edgetl"], "process 1 receives the signals"
    command, *rest = json.loads(last["CMD"])
    assert command == "serve" and {word for word in rest if word.startswith("--")} <= _options("serve")
