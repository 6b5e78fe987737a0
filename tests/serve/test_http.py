"""HTTP API of the server, with Triton's client and httpx."""

from __future__ import annotations

import base64
import gzip
import json
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
from tests.serve.serving import serving


@pytest.fixture
def client(server: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server) as opened:
        yield opened


@pytest.fixture(scope="module")
def web(server: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://{server}", timeout=None) as opened:
        yield opened


@pytest.fixture(scope="module")
def expected(bundle: Bundle, photo: bytes) -> np.ndarray:
    return np.array(load(bundle, variant="onnx-fp32").predict(photo).scores, np.float32)


def test_triton_client_reads_the_metadata(client: triton.InferenceServerClient, bundle: Bundle) -> None:
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
def test_tensor_gets_the_same_scores_as_python(
    client: triton.InferenceServerClient, bundle: Bundle, photo: bytes, expected: np.ndarray, binary: bool, compression: str | None
) -> None:
    tensor = preprocess(photo, bundle.manifest.preprocess)[None].repeat(2, axis=0)
    given = triton.InferInput("input", list(tensor.shape), "FP32")
    given.set_data_from_numpy(tensor, binary_data=binary)
    wanted = triton.InferRequestedOutput("scores", binary_data=binary)
    response = client.infer(bundle.manifest.name, [given], outputs=[wanted], request_id="seven", request_compression_algorithm=compression)
    found = response.as_numpy("scores")
    assert found.shape == (2, len(expected)) and np.abs(found - expected).max() < 1e-6
    assert response.get_response()["id"] == "seven" and response.get_response()["model_version"] == "1"


def test_encoded_images_get_the_same_scores_as_python(
    client: triton.InferenceServerClient, bundle: Bundle, photo: bytes, expected: np.ndarray
) -> None:
    given = triton.InferInput("input", [2], "BYTES")
    given.set_data_from_numpy(np.array([photo, photo], object))
    found = client.infer(bundle.manifest.name, [given]).as_numpy("scores")
    assert np.abs(found - expected).max() < 1e-6


@pytest.mark.parametrize("binary", [False, True])
def test_classification_extension_returns_top_labels(
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


def test_all_endpoints_give_the_same_prediction(web: httpx.Client, bundle: Bundle, run: Run, photo: bytes, expected: np.ndarray) -> None:
    path = run.samples("test")[0].path
    done = edgetl("predict", bundle.path, path, "--variant", "onnx-fp32", "--json")
    by_command = json.loads(done.stdout)
    row = by_command[0] if isinstance(by_command, list) else by_command.get("predictions", [by_command])[0]
    assert list(row["scores"].values()) == pytest.approx(expected.tolist(), abs=1e-6)
    response = web.post("/predict", content=photo).json()
    assert response["label"] == bundle.manifest.labels[int(expected.argmax())]
    assert list(response["scores"].values()) == pytest.approx(expected.tolist(), abs=1e-6)
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
    ("content", "headers", "status", "message"),
    [
        (b"", {}, 400, "not valid JSON"),
        (b"not an image", {"inference_header_content_length": "0"}, 400, "cannot read an image"),
        (b"{}", {"inference_header_content_length": "99"}, 400, "at most the length of the body"),
        (b"{}", {"content_encoding": "br"}, 415, "Use gzip, deflate"),
        (b"{}", {"content_encoding": "gzip"}, 400, "does not match its Content-Encoding"),
        (gzip.compress(bytes(40_000_000)), {"content_encoding": "gzip"}, 413, "the decompressed body is larger"),
        (b" " * 16_000_001, {}, 413, "is larger than 16000000 bytes"),
        (b"{}", {"request_timeout_ms": "soon"}, 400, "whole number of milliseconds"),
        (b"{}", {"request_timeout_ms": "9" * 5000}, 400, "whole number of milliseconds"),
        (b"{}", {"inference_header_content_length": "9" * 5000}, 400, "at most the length of the body"),
        (b'{"inputs": [], "inputs": []}', {}, 400, "an object has a duplicate key"),
        (b"[" * 250_000, {}, 400, "more lists, objects or values"),
    ],
    ids=[
        "empty",
        "not an image",
        "length",
        "brotli",
        "not gzip",
        "decompression bomb",
        "large",
        "deadline",
        "long deadline",
        "long length",
        "duplicate key",
        "deep",
    ],
)
def test_invalid_request_gets_an_error_in_json(
    web: httpx.Client, bundle: Bundle, content: bytes, headers: dict[str, str], status: int, message: str
) -> None:
    response = _infer(web, bundle, content, **headers)
    assert response.status_code == status and message in response.json()["error"]
    assert "/" not in response.json()["error"].replace("…/predict", ""), "errors contain no paths of the server"


def test_unknown_path_model_or_method_gets_404_or_405(web: httpx.Client, bundle: Bundle) -> None:
    name = bundle.manifest.name
    for path in ("/nothing", "/v2/models/other", f"/v2/models/{name}/versions/9", "/v2/models/other/ready"):
        response = web.get(path)
        assert response.status_code == 404 and set(response.json()) == {"error"}
    response = web.get(f"/v2/models/{name}/infer")
    assert response.status_code == 405 and "POST" in response.headers["Allow"] and "error" in response.json()


def test_metrics_have_no_labels_from_clients(web: httpx.Client, bundle: Bundle) -> None:
    web.get("/v2/models/invented-by-a-client")
    _infer(web, bundle, b"nonsense")
    text = web.get("/metrics").text
    assert f'edgetl_requests_total{{code="400",model="{bundle.manifest.name}",version="1"}}' in text
    assert "edgetl_queue_wait_seconds_bucket" in text and "invented" not in text


def _without_finite_outputs(bundle: Bundle, target: Path) -> Path:
    """Copy the bundle with a model that returns NaN for input values near 1000."""
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
            ("Exp", ["input"], "large"),
            ("Mul", ["large", "nothing"], "zeros"),
            (
                "ReduceSum",
                [
                    "zeros",
                    "pixels",
                ],
                "sums",
            ),
            ("Squeeze", ["sums", "pixels"], "flat"),
            ("Unsqueeze", ["flat", "column"], "sum"),
            ("Add", ["plain", "sum"], "logits"),
        ]
    )
    return forge(bundle, target, "onnx-fp32", [model.SerializeToString()])


def test_outputs_that_are_not_finite_get_500(bundle: Bundle, photo: bytes, tmp_path: Path) -> None:
    """JSON has no NaN. The binary form is an error too, for consistency."""
    with serving(_without_finite_outputs(bundle, tmp_path / "forged")) as served, httpx.Client(base_url=served.url, timeout=None) as web:
        assert web.post("/predict", content=photo).status_code == 200
        item = {"name": "input", "shape": [1, 3, 48, 48], "datatype": "FP32", "data": [1000] * 6912}
        raw = np.full((1, 3, 48, 48), 1000, "<f4").tobytes()
        path = f"/v2/models/{bundle.manifest.name}/infer"
        for response in (
            web.post(path, json={"inputs": [item]}),
            web.post(path, content=raw, headers={"Inference-Header-Content-Length": "0"}),
        ):
            assert response.status_code == 500 and "not finite" in response.json()["error"]
        assert served.metric("edgetl_nonfinite_outputs_total") == 2
        assert served.metric(f'edgetl_requests_total{{code="500",model="{bundle.manifest.name}",version="1"') == 2
        assert served.metric("edgetl_workers_replaced_total") == 0
