"""MQTT sink: one message with quality of service 1 for each record (MQTT 3.1.1, section 4.3.2)."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import SplitResult, unquote

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

# Limit for connecting and for the confirmations of one batch, seconds.
TIMEOUT_S = 10.0
# The broker is asked after this time without messages, seconds.
_KEEPALIVE_S = 30


class MqttConnection:
    """Connection to an MQTT broker. It never reconnects by itself: the outbox opens a new one, with the records that were not confirmed.

    Args:
        url: ``mqtt://[USER@]HOST[:PORT]/TOPIC``, or ``mqtts`` with TLS.
        password: password of the user, or none.

    Raises:
        OSError: the broker cannot be reached, or refuses the connection.
    """

    batch = 100

    def __init__(self, url: SplitResult, password: str | None) -> None:
        secure = url.scheme == "mqtts"
        self._topic = unquote(url.path.removeprefix("/"))
        self._answered = threading.Event()
        self._refused = ""
        self._client = Client(CallbackAPIVersion.VERSION2, reconnect_on_failure=False)
        self._client.connect_timeout = TIMEOUT_S
        self._client.max_inflight_messages_set(self.batch)
        self._client.on_connect = self._on_connect
        if url.username:
            self._client.username_pw_set(unquote(url.username), password)
        if secure:
            self._client.tls_set()
        self._client.connect(url.hostname or "", url.port or (8883 if secure else 1883), keepalive=_KEEPALIVE_S)
        self._client.loop_start()
        if not self._answered.wait(TIMEOUT_S) or self._refused:
            self.close()
            raise ConnectionError(f"the broker refuses the connection: {self._refused or 'no response'}")

    def send(self, records: Sequence[bytes]) -> None:
        """Publish records and wait for their confirmations.

        Raises:
            OSError: a confirmation is missing.
        """
        sent = [self._client.publish(self._topic, record, qos=1) for record in records]
        end = time.monotonic() + TIMEOUT_S
        try:
            while not all(message.is_published() for message in sent):
                if time.monotonic() > end or not self._client.is_connected():
                    raise ConnectionError("the connection to the broker was lost")
                next(message for message in sent if not message.is_published()).wait_for_publish(0.5)
        except (RuntimeError, ValueError) as error:  # of paho, for a message that is not queued
            raise ConnectionError(str(error)) from error

    def close(self) -> None:
        """Close the connection."""
        self._client.disconnect()
        self._client.loop_stop()

    def _on_connect(self, _client: Client, _userdata: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self._refused = str(reason) if reason.is_failure else ""
        self._answered.set()
