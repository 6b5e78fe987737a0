"""LitServe with the same predictor, in as many processes as others have threads, and its defaults otherwise."""

# No lazy annotations here: LitServe looks at that of decode_request as it is.
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
        # By then it is the form.
        data: bytes = request["image"].file.read()
        return data

    def predict(self, x: bytes) -> dict[str, object]:
        answer = self.predictor.predict(x)
        return {"label": answer.label, "score": answer.score, "scores": list(answer.scores)}

    def encode_response(self, output: dict[str, object]) -> dict[str, object]:
        return output


def main(bundle: str, variant: str, processes: str, port: str) -> None:
    server = litserve.LitServer(Api(bundle, variant), accelerator="cpu", workers_per_device=int(processes), max_payload_size=None)
    server.run(port=int(port), host="127.0.0.1", log_level="error", generate_client_file=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
