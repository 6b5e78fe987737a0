"""List of the peers: environments, contenders for inference, servers, and tools for training."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Environment:
    """Packages of a peer.

    Attributes:
        name: name of the environment.
        requirements: arguments of ``pip install``; ``{edgetl}`` is this repository. Empty if no registry has the peer.
        packages: packages whose versions are recorded.
        missing: reason why the peer cannot be installed.
        python: interpreter of the environment; empty: the one that runs this program.
    """

    name: str
    requirements: tuple[str, ...]
    packages: tuple[str, ...] = ()
    missing: str = ""
    python: str = ""


@dataclass(frozen=True)
class Contender:
    """Model and call of a peer, for inference.

    Attributes:
        title: row of the table.
        environment: name of the environment.
        module: module of ``bench.peers``.
        precision: fp32 or int8.
        reference: title of the edgetl row that its figures are divided by.
        note: settings, and what differs from the other rows.
    """

    title: str
    environment: str
    module: str
    precision: str
    reference: str
    note: str = ""


ENVIRONMENTS = (
    Environment("edgetl-onnxruntime", ("{edgetl}[onnxruntime]",), ("edgetl", "onnxruntime")),
    Environment("edgetl-openvino", ("{edgetl}[openvino]",), ("edgetl", "openvino")),
    Environment("edgetl-serve", ("{edgetl}[onnxruntime,serve]",), ("edgetl", "onnxruntime", "uvicorn")),
    Environment("onnxruntime", ("onnxruntime", "pillow", "numpy"), ("onnxruntime", "pillow")),
    Environment("openvino", ("openvino", "pillow", "numpy"), ("openvino", "pillow")),
    Environment("timm", ("timm", "torch", "torchvision"), ("timm", "torch", "torchvision")),
    Environment("ultralytics", ("ultralytics", "onnx", "onnxruntime", "openvino", "nncf"), ("ultralytics", "torch", "openvino")),
    Environment("optimum-onnx", ("optimum-onnx[onnxruntime]", "torchvision", "pillow"), ("optimum-onnx", "transformers", "onnxruntime")),
    Environment("optimum-onnx-export", ("optimum-onnx[onnxruntime]", "datasets"), ("optimum-onnx", "datasets")),
    Environment("optimum-intel", ("optimum-intel[openvino]", "torchvision", "pillow"), ("optimum-intel", "transformers", "openvino")),
    Environment("model-api", ("openvino-model-api",), ("openvino-model-api", "openvino")),
    Environment("fastapi", ("fastapi", "uvicorn", "onnxruntime", "pillow", "numpy"), ("fastapi", "uvicorn", "onnxruntime")),
    Environment("litserve", ("litserve", "python-multipart", "onnxruntime", "pillow", "numpy"), ("litserve", "onnxruntime")),
    # Triton loads the shared library of Python, which must have the same version as the interpreter.
    Environment("triton", ("nvidia-pytriton", "onnxruntime", "pillow"), ("nvidia-pytriton", "onnxruntime"), python="/usr/bin/python3"),
    Environment(
        "openvino-model-server",
        (),
        missing="its packages are container images and archives of GitHub; PyPI and Debian have no package of the server",
    ),
    Environment("edgetl-train", ("{edgetl}[all]",), ("edgetl", "torch", "timm")),
    Environment("fastai", ("fastai", "timm"), ("fastai", "torch", "timm")),
    Environment("autogluon", ("autogluon.multimodal",), ("autogluon.multimodal", "torch", "timm")),
)

ORT, OPENVINO, SCALED = "edgetl, ONNX Runtime", "edgetl, OpenVINO", "edgetl, OpenVINO, scaled decoding"
_OWN_NETWORK = "YOLO11n-cls at 224 px with random weights: no network of timm can be used, and no weights are downloaded"
CONTENDERS = (
    Contender(ORT + ", fp32", "edgetl-onnxruntime", "inference.edgetl_onnxruntime", "fp32", ORT + ", fp32"),
    Contender("ONNX Runtime, fp32", "onnxruntime", "inference.onnxruntime_code", "fp32", ORT + ", fp32"),
    Contender("optimum-onnx, fp32", "optimum-onnx", "inference.optimum_onnx", "fp32", ORT + ", fp32"),
    Contender("timm, eager PyTorch", "timm", "inference.timm_eager", "fp32", ORT + ", fp32"),
    Contender("timm, torch.compile", "timm", "inference.timm_compiled", "fp32", ORT + ", fp32"),
    Contender("Ultralytics, PyTorch", "ultralytics", "inference.ultralytics_yolo", "fp32", ORT + ", fp32", _OWN_NETWORK),
    Contender("Ultralytics, ONNX", "ultralytics", "inference.ultralytics_onnx", "fp32", ORT + ", fp32", _OWN_NETWORK),
    Contender(OPENVINO + ", fp32", "edgetl-openvino", "inference.edgetl_openvino", "fp32", OPENVINO + ", fp32"),
    Contender(SCALED + ", fp32", "edgetl-openvino", "inference.edgetl_scaled", "fp32", OPENVINO + ", fp32"),
    Contender("OpenVINO, fp32", "openvino", "inference.openvino_code", "fp32", OPENVINO + ", fp32"),
    Contender("optimum-intel, fp32", "optimum-intel", "inference.optimum_intel", "fp32", OPENVINO + ", fp32"),
    Contender("Model API, fp32", "model-api", "inference.model_api", "fp32", OPENVINO + ", fp32"),
    Contender("Ultralytics, OpenVINO", "ultralytics", "inference.ultralytics_openvino", "fp32", OPENVINO + ", fp32", _OWN_NETWORK),
    Contender(ORT + ", int8", "edgetl-onnxruntime", "inference.edgetl_onnxruntime", "int8", ORT + ", int8"),
    Contender("ONNX Runtime, int8", "onnxruntime", "inference.onnxruntime_code", "int8", ORT + ", int8"),
    Contender("optimum-onnx, int8", "optimum-onnx", "inference.optimum_onnx", "int8", ORT + ", int8"),
    Contender(OPENVINO + ", int8", "edgetl-openvino", "inference.edgetl_openvino", "int8", OPENVINO + ", int8"),
    Contender(SCALED + ", int8", "edgetl-openvino", "inference.edgetl_scaled", "int8", OPENVINO + ", int8"),
    Contender("OpenVINO, int8", "openvino", "inference.openvino_code", "int8", OPENVINO + ", int8"),
    Contender("optimum-intel, int8", "optimum-intel", "inference.optimum_intel", "int8", OPENVINO + ", int8"),
    Contender("Model API, int8", "model-api", "inference.model_api", "int8", OPENVINO + ", int8"),
    Contender("Ultralytics, OpenVINO int8", "ultralytics", "inference.ultralytics_openvino", "int8", OPENVINO + ", int8", _OWN_NETWORK),
)


@dataclass(frozen=True)
class Server:
    """HTTP server with the fp32 network in ONNX Runtime.

    Attributes:
        title: row of the table.
        environment: name of the environment.
        arguments: arguments of its Python; ``{models}``, ``{cores}`` and ``{port}`` are replaced.
        form: form of a request: ``body``, ``form`` or ``triton``.
    """

    title: str
    environment: str
    arguments: tuple[str, ...]
    form: str


_GIVEN = ("{models}", "{cores}", "{port}")
_SERVE = ("-m", "edgetl.cli.app", "serve", "{models}/bundle", "--variant", "onnx-fp32", "--threads", "{cores}", "--port", "{port}")
SERVERS = (
    Server("edgetl serve", "edgetl-serve", (*_SERVE, "--no-access-log"), "body"),
    Server("FastAPI", "fastapi", ("-m", "bench.peers.servers.fastapi_app", *_GIVEN), "body"),
    Server("LitServe", "litserve", ("-m", "bench.peers.servers.litserve_app", *_GIVEN), "form"),
    Server("Triton (PyTriton)", "triton", ("-m", "bench.peers.servers.triton_app", *_GIVEN), "triton"),
)


BUDGETS: tuple[int | None, ...] = (10, 100, None)  # labeled images per class; None: all


def budget_name(budget: int | None) -> str:
    """Return the column of a budget."""
    return "all" if budget is None else f"{budget} per class"


@dataclass(frozen=True)
class Tool:
    """Tool for training.

    Attributes:
        title: row of the table.
        environment: name of the environment.
        module: module of ``bench.peers``.
        budgets: label budgets that it is measured with, images per class; None: all images.
    """

    title: str
    environment: str
    module: str
    budgets: tuple[int | None, ...] = BUDGETS


TOOLS = (
    Tool("edgetl", "edgetl-train", "training.edgetl_auto"),
    # With more images, auto selects partial itself.
    Tool("edgetl, --strategy partial", "edgetl-train", "training.edgetl_partial", budgets=(10,)),
    Tool("fastai", "fastai", "training.fastai_vision"),
    Tool("AutoGluon", "autogluon", "training.autogluon_multimodal"),
)
