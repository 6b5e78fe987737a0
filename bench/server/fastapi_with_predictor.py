"""Peer of the server benchmark: a handwritten FastAPI server with a predictor in a few threads."""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor

import uvicorn
from fastapi import FastAPI, Request

from edgetl.runtime.predictor import load


def main(bundle: str, variant: str, threads: str, port: str) -> None:
    predictor, pool, app = load(bundle, variant=variant, threads=1), ThreadPoolExecutor(int(threads)), FastAPI()

    async def predict(request: Request) -> dict[str, object]:
        image = await request.body()
        prediction = await asyncio.get_running_loop().run_in_executor(pool, predictor.predict, image)
        return {"label": prediction.label, "score": prediction.score, "scores": list(prediction.scores)}

    # FastAPI cannot resolve the postponed annotations of a nested function.
    predict.__annotations__["request"] = Request
    app.add_api_route("/predict", predict, methods=["POST"])
    uvicorn.run(app, port=int(port), log_level="error", access_log=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
