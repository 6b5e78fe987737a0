"""FastAPI server with plain ONNX Runtime: one session per thread of a pool, the image as the body of the request."""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request

from bench.peers.inference.onnxruntime_code import load
from bench.peers.worker import Setting


def main(models: str, threads: str, port: str) -> None:
    plain, pool, app = load(Setting(Path(models), "fp32", 1)), ThreadPoolExecutor(int(threads)), FastAPI()

    async def predict(request: Request) -> dict[str, str]:
        image = await request.body()
        return {"label": await asyncio.get_running_loop().run_in_executor(pool, plain.predict, image)}

    # FastAPI cannot resolve the postponed annotations of a nested function.
    predict.__annotations__["request"] = Request
    app.add_api_route("/predict", predict, methods=["POST"])
    uvicorn.run(app, port=int(port), log_level="error", access_log=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
