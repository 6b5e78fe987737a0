from __future__ import annotations

import signal
import threading
import time

import httpx
import pytest

from edgetl.core.bundle import Bundle
from edgetl.train.run import Run
from tests.serve.conftest import start


def _ask(address: str, photo: bytes, stop: threading.Event, codes: list[int], lost: list[str]) -> None:
    """One client with a connection that it keeps until it is told that it will close; whatever was sent and not answered is lost."""
    with httpx.Client(timeout=30) as client:
        while not stop.is_set():
            try:
                answer = client.post(f"http://{address}/predict", content=photo)
                codes.append(answer.status_code)
                if answer.headers.get("Connection") == "close":
                    return
            except httpx.HTTPError as error:
                lost.append(repr(error))


@pytest.mark.parametrize("trials", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_no_request_on_an_open_connection_is_lost_on_sigterm(bundle: Bundle, run: Run, trials: int) -> None:
    photo = run.samples("test")[0].path.read_bytes()
    codes: list[int] = []
    lost: list[str] = []
    for _ in range(trials):
        process, address = start(bundle.path, "--queue", "64")
        stop = threading.Event()
        clients = [threading.Thread(target=_ask, args=(address, photo, stop, codes, lost)) for _ in range(8)]
        for client in clients:
            client.start()
        time.sleep(1.0)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        with httpx.Client() as looker:
            assert looker.get(f"http://{address}/v2/health/ready").status_code == 503, "readiness falls before connections are refused"
        assert process.wait(30) == 0
        stop.set()
        for client in clients:
            client.join()
        if process.stderr:
            process.stderr.close()
    assert not lost and set(codes) == {200} and len(codes) > 50 * trials
