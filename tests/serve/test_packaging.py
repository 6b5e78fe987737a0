from __future__ import annotations

import configparser
import json
import re
import shlex
from pathlib import Path

import pytest

from edgetl.core.bundle import Bundle
from tests.command import edgetl

ROOT = Path(__file__).parents[2]
DOCUMENTS = (ROOT / "docs" / "how-to" / "serving.md", ROOT / "docs" / "how-to" / "containers.md")
UNIT = ROOT / "packaging" / "edgetl.service"
DOCKERFILE = ROOT / "Dockerfile"
# Of other programs in the document's commands, by the word that begins such a command.
_FOREIGN = ("curl", "openssl", "docker run", "docker build", "pip ")


def _documents() -> str:
    return "\n".join(path.read_text("utf-8") for path in DOCUMENTS)


def _options(command: str) -> set[str]:
    """Every option that a command's help names."""
    shown = edgetl(command, "--help")
    assert shown.returncode == 0, shown.stderr
    return set(re.findall(r"--[a-z][a-z0-9-]*", shown.stdout))


def _unit() -> configparser.ConfigParser:
    # Keys that come twice are lists in a unit; the last one is enough here.
    unit = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",), comment_prefixes=("#", ";"))
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(UNIT.read_text("utf-8"))
    return unit


def test_the_units_command_and_options_exist() -> None:
    program, command, bundle, *rest = shlex.split(_unit()["Service"]["ExecStart"])
    assert Path(program).name == "edgetl" and command == "serve" and Path(bundle).is_absolute()
    comments = [word for line in UNIT.read_text("utf-8").splitlines() if "EDGETL_OPTIONS=--" in line for word in shlex.split(line, True)]
    wanted = {word for word in [*rest, *" ".join(comments).split()] if word.startswith("--")}
    assert "--watch" in wanted and wanted <= _options("serve")


def test_the_unit_lets_a_drain_end_and_a_lost_worker_be_replaced() -> None:
    from edgetl.serve.run import DRAIN_S, NOT_READY_S

    service = _unit()["Service"]
    assert int(service["TimeoutStopSec"]) > DRAIN_S + NOT_READY_S
    assert service["KillMode"] == "mixed" and service["OOMPolicy"] == "continue" and service["Restart"] == "always"
    assert "AF_UNIX" in service["RestrictAddressFamilies"].split(), "the server is_first_process with its workers over socket pairs"
    assert "MemoryDenyWriteExecute" not in service, "engines write machine code"


def test_a_variants_folder_is_a_model_of_a_repository(bundle: Bundle) -> None:
    # What OpenVINO Model Server and Triton look for: NAME/VERSION/model.onnx, or model.xml with model.bin, and nothing else.
    files = {"onnx": {"model.onnx"}, "openvino": {"model.xml", "model.bin"}}
    variants = bundle.manifest.variants
    assert len(variants) == 6
    for variant in variants:
        folder = bundle.path / f"{variant.format}-{variant.precision}"
        assert folder.name == variant.name and [child.name for child in folder.iterdir()] == ["1"]
        assert {child.name for child in (folder / "1").iterdir()} == files[variant.format]


def test_every_yaml_block_of_the_documents_parses() -> None:
    yaml = pytest.importorskip("yaml")
    blocks = re.findall(r"^```yaml\n(.*?)^```", _documents(), re.DOTALL | re.MULTILINE)
    kinds = [value["kind"] for block in blocks for value in yaml.safe_load_all(block)]
    assert kinds == ["Deployment", "Service", "ServingRuntime", "InferenceService"]


def test_every_option_of_edgetl_in_the_documents_exists() -> None:
    text = _documents().replace("\\\n", " ").replace("\n$ ", "\n")
    # A command of another program ends where its line does; what it hands to `edgetl serve` in a container is an option of edgetl.
    lines = [
        re.split(r"\bserve\b", line)[-1] if line.strip().startswith(_FOREIGN) and " serve " in line else line for line in text.splitlines()
    ]
    ours = [line for line in lines if not line.strip().startswith(_FOREIGN)]
    named = {option for line in ours for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", line)}
    assert len(named) > 12
    known = _options("serve") | _options("export") | _options("predict")
    assert named <= known, named - known


def test_the_image_is_a_plain_guest() -> None:
    lines = [line for line in DOCKERFILE.read_text("utf-8").splitlines() if line and not line.startswith("#")]
    last = {line.split(maxsplit=1)[0]: line.split(maxsplit=1)[1] for line in lines if line[0].isalpha()}
    user = last["USER"].partition(":")[0]
    assert user.isdigit() and int(user) > 0, "Kubernetes' runAsNonRoot asks for a number"
    assert last["STOPSIGNAL"] == "SIGTERM"
    assert "VOLUME" not in last, "what a further image copies to a volume's place may be lost"
    check = json.loads(last["HEALTHCHECK"].partition("CMD ")[2])
    assert check[:2] == ["python", "-c"] and "/v2/health/ready" in check[2]
    compile(check[2], "HEALTHCHECK", "exec")
    assert json.loads(last["ENTRYPOINT"]) == ["edgetl"], "process 1 gets the signals"
    command, *rest = json.loads(last["CMD"])
    assert command == "serve" and {word for word in rest if word.startswith("--")} <= _options("serve")
