"""Clients that send ``POST /predict`` requests from several threads."""

from __future__ import annotations

import threading
import time
from collections import Counter

import httpx

from tests.serve.serving import Served


class Clients:
    """Threads that send the same image again and again, until ``end`` or until the server accepts no connections.

    Attributes:
        statuses: number of responses by status.
        versions: number of responses with status 200 by model version.
        errors: requests without a complete response, and responses that mix model versions.
    """

    def __init__(self, served: Served, photo: bytes, count: int) -> None:
        self.statuses: Counter[int] = Counter()
        self.versions: Counter[str] = Counter()
        self.errors: list[str] = []
        self._url, self._photo, self._stop = f"{served.url}/predict", photo, threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            with httpx.Client(timeout=None) as client:
                try:
                    self._send_on(client)
                except httpx.ConnectError:
                    # The server accepts no connections, and the request was not sent.
                    return
                except httpx.HTTPError as error:
                    self.errors.append(repr(error))

    def _send_on(self, client: httpx.Client) -> None:
        while not self._stop.is_set():
            response = client.post(self._url, content=self._photo)
            self.statuses[response.status_code] += 1
            if response.status_code == 200:
                self._count_version(response)
            if response.headers.get("Connection") == "close":
                return
            # Leave CPU time to the server and to other tests.
            time.sleep(0.005)

    def _count_version(self, response: httpx.Response) -> None:
        prediction = response.json()
        version = prediction["version"]
        if any(" of " in label and not label.endswith(f" of {version}") for label in prediction["scores"]):
            self.errors.append(response.text)
        self.versions[version] += 1

    def end(self) -> None:
        """Wait for the last responses."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
