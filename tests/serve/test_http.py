"""A real server on loopback, spoken to by Triton's client and by httpx."""

from __future__ import annotations

import base64
import gzip
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import pytest
import tritonclient.http as triton

from edgetl.core.bundle import Bundle
from edgetl.core.preprocess import preprocess
from edgetl.runtime.predictor import load
from edgetl.train.artifacts.run import Run
from tests.command import edgetl
from tests.runtime.hostile import forge
from tests.serve.serving import free_port, serving


@pytest.fixture
def client(server: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server) as opened:
        yield opened


@pytest.fixture(scope="module")
def web(server: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://{server}", timeout=30) as opened:
        yield opened


@pytest.fixture(scope="module")
def expected(bundle: Bundle, photo: bytes) -> np.ndarray:
    return np.array(load(bundle, variant="onnx-fp32").predict(photo).scores, np.float32)


def test_tritons_client_finds_all_that_the_protocol_names(client: triton.InferenceServerClient, bundle: Bundle) -> None:
    name, manifest = bundle.manifest.name, bundle.manifest
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready(name) and client.is_model_ready(name, "1")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data", "classification"]
    metadata = client.get_model_metadata(name)
    height, width = manifest.preprocess.input_size
    assert metadata["name"] == name and metadata["versions"] == ["1"] and metadata["platform"] == "onnxruntime_onnx"
    assert metadata["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 3, height, width]}]
    assert {"name": "scores", "datatype": "FP32", "shape": [-1, len(manifest.labels)]} in metadata["outputs"]


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_a_tensor_gets_the_scores_that_python_gets(
    client: triton.InferenceServerClient, bundle: Bundle, photo: bytes, expected: np.ndarray, binary: bool, compression: str | None
) -> None:
    tensor = preprocess(photo, bundle.manifest.preprocess)[None].repeat(2, axis=0)
    given = triton.InferInput("input", list(tensor.shape), "FP32")
    given.set_data_from_numpy(tensor, binary_data=binary)
    wanted = triton.InferRequestedOutput("scores", binary_data=binary)
    answer = client.infer(bundle.manifest.name, [given], outputs=[wanted], request_id="seven", request_compression_algorithm=compression)
    found = answer.as_numpy("scores")
    assert found.shape == (2, len(expected)) and np.abs(found - expected).max() < 1e-6
    assert answer.get_response()["id"] == "seven" and answer.get_response()["model_version"] == "1"


def test_encoded_images_are_prepared_by_the_server(
    client: triton.InferenceServerClient, bundle: Bundle, photo: bytes, expected: np.ndarray
) -> None:
    given = triton.InferInput("input", [2], "BYTES")
    given.set_data_from_numpy(np.array([photo, photo], object))
    found = client.infer(bundle.manifest.name, [given]).as_numpy("scores")
    assert np.abs(found - expected).max() < 1e-6


@pytest.mark.parametrize("binary", [False, True])
def test_labels_come_in_tritons_form(
    client: triton.InferenceServerClient, bundle: Bundle, photo: bytes, expected: np.ndarray, binary: bool
) -> None:
    given = triton.InferInput("input", [1], "BYTES")
    given.set_data_from_numpy(np.array([photo], object))
    wanted = triton.InferRequestedOutput("scores", binary_data=binary, class_count=3)
    rows = client.infer(bundle.manifest.name, [given], outputs=[wanted]).as_numpy("scores")
    assert rows.shape == (1, 3)
    texts = [item.decode() if isinstance(item, bytes) else item for item in rows[0]]
    score, index, label = texts[0].split(":")
    best = int(expected.argmax())
    assert (int(index), label) == (best, bundle.manifest.labels[best]) and float(score) == pytest.approx(expected[best], abs=1e-5)


def test_every_way_gives_the_same_answer(web: httpx.Client, bundle: Bundle, run: Run, photo: bytes, expected: np.ndarray) -> None:
    path = run.samples("test")[0].path
    shown = edgetl("predict", bundle.path, path, "--variant", "onnx-fp32", "--json")
    by_command = json.loads(shown.stdout)
    row = by_command[0] if isinstance(by_command, list) else by_command.get("predictions", [by_command])[0]
    assert list(row["scores"].values()) == pytest.approx(expected.tolist(), abs=1e-6)
    answer = web.post("/predict", content=photo).json()
    assert answer["label"] == bundle.manifest.labels[int(expected.argmax())]
    assert list(answer["scores"].values()) == pytest.approx(expected.tolist(), abs=1e-6)
    raw = web.post(f"/v2/models/{bundle.manifest.name}/infer", content=photo, headers={"Inference-Header-Content-Length": "0"})
    length = int(raw.headers["Inference-Header-Content-Length"])
    assert np.frombuffer(raw.content[length:], "<f4") == pytest.approx(expected, abs=1e-6)
    body = {"inputs": [{"name": "input", "shape": [1], "datatype": "BYTES", "data": [base64.b64encode(photo).decode()]}]}
    found = web.post(f"/v2/models/{bundle.manifest.name}/versions/1/infer", json=body).json()["outputs"][0]["data"]
    assert found == pytest.approx(expected.tolist(), abs=1e-6)


def _infer(web: httpx.Client, bundle: Bundle, content: bytes | dict[str, Any], **headers: str) -> httpx.Response:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return web.post(
        f"/v2/models/{bundle.manifest.name}/infer", content=data, headers={key.replace("_", "-"): v for key, v in headers.items()}
    )


@pytest.mark.parametrize(
    ("content", "headers", "status", "said"),
    [
        (b"", {}, 400, "not valid JSON"),
        (b"no image", {"inference_header_content_length": "0"}, 400, "cannot read an image"),
        (b"{}", {"inference_header_content_length": "99"}, 400, "at most the length of the body"),
        (b"{}", {"content_encoding": "br"}, 415, "Use gzip, deflate"),
        (b"{}", {"content_encoding": "gzip"}, 400, "does not match its Content-Encoding"),
        (gzip.compress(bytes(40_000_000)), {"content_encoding": "gzip"}, 413, "the decompressed body is larger"),
        (b" " * 16_000_001, {}, 413, "is larger than 16000000 bytes"),
        (b"{}", {"request_timeout_ms": "soon"}, 400, "whole number of milliseconds"),
        (b"{}", {"request_timeout_ms": "9" * 5000}, 400, "whole number of milliseconds"),
        (b"{}", {"inference_header_content_length": "9" * 5000}, 400, "at most the length of the body"),
        (b'{"inputs": [], "inputs": []}', {}, 400, "a key stands twice"),
        (b"[" * 250_000, {}, 400, "more lists, objects or values"),
    ],
    ids=["empty", "no image", "length", "brotli", "no gzip", "bomb", "large", "deadline", "long deadline", "long length", "twice", "deep"],
)
def test_what_cannot_be_answered_is_told_in_json(
    web: httpx.Client, bundle: Bundle, content: bytes, headers: dict[str, str], status: int, said: str
) -> None:
    answer = _infer(web, bundle, content, **headers)
    assert answer.status_code == status and said in answer.json()["error"]
    assert "/" not in answer.json()["error"].replace("…/predict", ""), "no path of the server"


def test_unknown_addresses_models_and_methods(web: httpx.Client, bundle: Bundle) -> None:
    name = bundle.manifest.name
    for path in ("/nothing", "/v2/models/other", f"/v2/models/{name}/versions/9", "/v2/models/other/ready"):
        answer = web.get(path)
        assert answer.status_code == 404 and set(answer.json()) == {"error"}
    answer = web.get(f"/v2/models/{name}/infer")
    assert answer.status_code == 405 and "POST" in answer.headers["Allow"] and "error" in answer.json()


def test_metrics_count_by_model_and_never_by_what_a_client_wrote(web: httpx.Client, bundle: Bundle) -> None:
    web.get("/v2/models/invented-by-a-client")
    _infer(web, bundle, b"nonsense")
    text = web.get("/metrics").text
    assert f'edgetl_requests_total{{code="400",model="{bundle.manifest.name}",version="1"}}' in text
    assert "edgetl_queue_wait_seconds_bucket" in text and "invented" not in text


def test_a_port_that_is_taken_is_a_clean_error(bundle: Bundle) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = edgetl("serve", bundle.path, "--port", taken.getsockname()[1], "--variant", "onnx-fp32")
    assert done.returncode == 3 and "cannot listen on 127.0.0.1" in done.stderr and "Traceback" not in done.stderr


def test_nobody_else_is_let_in_unless_asked(bundle: Bundle) -> None:
    done = edgetl("serve", bundle.path, "--host", "0.0.0.0", "--port", free_port())
    assert done.returncode == 3 and "--insecure" in done.stderr


def _without_finite_outputs(bundle: Bundle, target: Path) -> Path:
    """A copy of the bundle whose network predicts as before, but NaN from values near 1000."""
    model = onnx.load(bundle.path / "onnx-fp32/1/model.onnx")
    graph = model.graph
    for node in graph.node:
        node.output[:] = ["plain" if name == "logits" else name for name in node.output]
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(0, np.float32), "nothing"))
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 2, 3]), "pixels"))
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "column"))
    graph.node.extend(
        onnx.helper.make_node(kind, inputs, [output])
        for kind, inputs, output in [
            ("Exp", ["input"], "large"), ("Mul", ["large", "nothing"], "zeros"), ("ReduceSum", ["zeros", "pixels", ], "sums"),
            ("Squeeze", ["sums", "pixels"], "flat"), ("Unsqueeze", ["flat", "column"], "sum"), ("Add", ["plain", "sum"], "logits"),
        ]
    )  # fmt: skip
    return forge(bundle, target, "onnx-fp32", [model.SerializeToString()])


def test_outputs_that_are_not_finite_are_an_error_and_counted(bundle: Bundle, photo: bytes, tmp_path: Path) -> None:
    """In JSON they would be no JSON; the binary form is refused as well, so that both mean the same."""
    with serving(_without_finite_outputs(bundle, tmp_path / "forged")) as served, httpx.Client(base_url=served.url, timeout=30) as web:
        assert web.post("/predict", content=photo).status_code == 200
        item = {"name": "input", "shape": [1, 3, 48, 48], "datatype": "FP32", "data": [1000] * 6912}
        raw = np.full((1, 3, 48, 48), 1000, "<f4").tobytes()
        path = f"/v2/models/{bundle.manifest.name}/infer"
        for answer in (
            web.post(path, json={"inputs": [item]}),
            web.post(path, content=raw, headers={"Inference-Header-Content-Length": "0"}),
        ):
            assert answer.status_code == 500 and "not finite" in answer.json()["error"]
        assert served.metric("edgetl_nonfinite_outputs_total") == 2
        assert served.metric(f'edgetl_requests_total{{code="500",model="{bundle.manifest.name}",version="1"') == 2
        assert served.metric("edgetl_workers_replaced_total") == 0
