"""LitServe server with plain ONNX Runtime: one process per core, the image as a part of a form."""

# Annotations are not postponed: LitServe reads the annotation of decode_request.
import sys
from pathlib import Path

import litserve
from fastapi import Request

from bench.peers.inference.onnxruntime_code import Plain, load
from bench.peers.worker import Setting


class Api(litserve.LitAPI):
    plain: Plain

    def __init__(self, models: str) -> None:
        super().__init__()
        self.models = models

    def setup(self, device: str) -> None:  # noqa: ARG002
        self.plain = load(Setting(Path(self.models), "fp32", 1))

    def decode_request(self, request: Request) -> bytes:
        # LitServe passes the parsed form as the request.
        data: bytes = request["image"].file.read()
        return data

    def predict(self, x: bytes) -> str:
        return self.plain.predict(x)

    def encode_response(self, output: str) -> dict[str, str]:
        return {"label": output}


def main(models: str, processes: str, port: str) -> None:
    server = litserve.LitServer(Api(models), accelerator="cpu", workers_per_device=int(processes), max_payload_size=None)
    server.run(port=int(port), host="127.0.0.1", log_level="error", generate_client_file=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
