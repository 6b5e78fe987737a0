"""Peer of the server benchmark: LitServe with the same predictor, one process per thread of the others, and its default settings."""

# This module has no postponed annotations, because LitServe does not resolve the annotation of decode_request.
import sys

import litserve
from fastapi import Request

from edgetl.runtime.predictor import Predictor, load


class Api(litserve.LitAPI):
    predictor: Predictor

    def __init__(self, bundle: str, variant: str) -> None:
        super().__init__()
        self.bundle, self.variant = bundle, variant

    def setup(self, device: str) -> None:  # noqa: ARG002
        self.predictor = load(self.bundle, variant=self.variant, threads=1)

    def decode_request(self, request: Request) -> bytes:
        # LitServe passes the parsed form as the request.
        data: bytes = request["image"].file.read()
        return data

    def predict(self, x: bytes) -> dict[str, object]:
        prediction = self.predictor.predict(x)
        return {"label": prediction.label, "score": prediction.score, "scores": list(prediction.scores)}

    def encode_response(self, output: dict[str, object]) -> dict[str, object]:
        return output


def main(bundle: str, variant: str, processes: str, port: str) -> None:
    server = litserve.LitServer(Api(bundle, variant), accelerator="cpu", workers_per_device=int(processes), max_payload_size=None)
    server.run(port=int(port), host="127.0.0.1", log_level="error", generate_client_file=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
