"""Sinks of the runner: lines, the spool, the outbox over HTTP, and MQTT with a real Mosquitto broker."""

from __future__ import annotations

import csv
import json
import os
import resource
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from edgetl.device.runner.sinks.address import LineAddress, NetworkAddress, parse_sink
from edgetl.device.runner.sinks.lines import LineSink
from edgetl.device.runner.sinks.outbox import Outbox, RejectedError
from edgetl.device.runner.sinks.record import COLUMNS, Record
from edgetl.device.runner.sinks.spool import Spool, SpoolFullError, spool_name
from edgetl.device.runner.sinks.to_http import HttpConnection
from edgetl.device.runner.waiting import Backoff
from edgetl.errors import ConfigError, StorageError


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backoff, "next", lambda _: 0.01)


def record(number: int, **values: Any) -> Record:
    return Record({"id": f"p-{number}", "time": "2026-01-01T00:00:00.000+00:00", "image": "a b.jpg", "model": "m", "release": 1, **values})


def until(condition: Callable[[], bool]) -> None:
    """Wait for another thread or process."""
    pause = threading.Event()
    while not condition():
        pause.wait(0.01)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("jsonl", LineAddress("jsonl", None)),
        ("csv", LineAddress("csv", None)),
        ("jsonl:a b/c.jsonl", LineAddress("jsonl", Path("a b/c.jsonl"))),
        ("mqtt://user@broker:1884/a/b", NetworkAddress("mqtt", urlsplit("mqtt://user@broker:1884/a/b"))),
        ("https://host/in?x=1", NetworkAddress("http", urlsplit("https://host/in?x=1"))),
    ],
)
def test_sink_address_is_parsed(text: str, expected: LineAddress | NetworkAddress) -> None:
    assert parse_sink(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("json", "is not known. Set jsonl, csv"),
        ("jsonl:", "is not known"),
        ("file:///x", "is not known"),
        ("http://:80/x", "has no valid host"),
        ("http://host:99999/", "is not a URL"),
        ("mqtt://host", "has no valid topic"),
        ("mqtt://host/a/#", "has no valid topic"),
        ("mqtt://me:secret@host/a", "Use --secret-file"),
    ],
)
def test_wrong_sink_address_is_an_error_without_the_password(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        parse_sink(text)
    assert "secret@" not in str(caught.value)


def test_jsonl_file_is_extended_and_its_cut_off_line_is_ended(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text('{"id":"old"}\n{"id":"cut o')
    sink = LineSink(path, "jsonl")
    assert sink.put(record(1, label="é\n")) and sink.status().delivered == 1
    sink.close(1)
    lines = path.read_text().splitlines()
    assert lines[:2] == ['{"id":"old"}', '{"id":"cut o'] and json.loads(lines[2])["label"] == "é\n"


def test_csv_file_has_one_header_and_constant_columns(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    for first in (1, 3):
        sink = LineSink(path, "csv")
        assert sink.put(record(first, label='a,"b"', score=0.5, scores={"a": 0.5}))
        assert sink.put(record(first + 1, error="unreadable\nfile", labels=["x", "y"]))
        sink.close(1)
    rows = list(csv.DictReader(path.read_text("utf-8").splitlines(keepends=True)))
    assert [row["id"] for row in rows] == ["p-1", "p-2", "p-3", "p-4"] and set(rows[0]) == set(COLUMNS)
    assert rows[0]["label"] == 'a,"b"' and rows[1]["error"] == "unreadable\nfile" and rows[1]["labels"] == "x;y"


def test_file_sink_continues_after_a_log_rotation(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    sink = LineSink(path, "jsonl")
    sink.put(record(1))
    path.rename(tmp_path / "out.jsonl.1")
    sink.put(record(2))
    sink.close(1)
    assert [json.loads(p.read_text())["id"] for p in (tmp_path / "out.jsonl.1", path)] == ["p-1", "p-2"]


def test_file_sink_takes_no_record_while_its_folder_is_away(tmp_path: Path) -> None:
    (tmp_path / "drive").mkdir()
    sink = LineSink(tmp_path / "drive/out.jsonl", "jsonl")
    assert sink.put(record(1))
    (tmp_path / "drive").rename(tmp_path / "away")
    assert not sink.put(record(2)) and "No such file" in sink.status().problem
    (tmp_path / "away").rename(tmp_path / "drive")
    assert sink.put(record(2)) and sink.status().problem == ""
    assert len((tmp_path / "drive/out.jsonl").read_text().splitlines()) == 2


def test_full_disk_leaves_no_partial_line(tmp_path: Path) -> None:
    sink = LineSink(tmp_path / "out.jsonl", "jsonl")
    size = len(record(1).to_json()) + 1
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + size // 2, hard))
        assert sink.put(record(1)) and not sink.put(record(2)) and not sink.put(record(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sink.put(record(2))
    assert [json.loads(line)["id"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == ["p-1", "p-2"]


def test_file_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot write"):
        LineSink(tmp_path / "missing/out.jsonl", "jsonl")


def test_spool_keeps_the_order_over_restarts(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "a/spool.sqlite", 1_000_000)
    spool.add([(1, b"a"), (2, b"b")])
    spool.add([(3, b"c")])
    spool.remove(1)
    spool.close()
    again = Spool(tmp_path / "a/spool.sqlite", 1_000_000)
    assert again.first(5) == [(2, b"b"), (3, b"c")] and (again.count, again.last_number) == (2, 3)


def test_spool_refuses_records_beyond_its_limit_and_takes_them_again_later(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool.sqlite", 200_000)
    number = 0
    with pytest.raises(SpoolFullError, match="full"):
        while True:
            spool.add([(number + 1, bytes(1000))])
            number += 1
    assert number > 100 and spool.count == number, "a record that was refused is not counted"
    assert (tmp_path / "spool.sqlite").stat().st_size <= 200_000
    spool.remove(number // 2)
    spool.add([(number + 1, bytes(1000))])
    assert spool.first(1)[0][0] == number // 2 + 1


def test_spool_belongs_to_one_process(tmp_path: Path) -> None:
    first = Spool(tmp_path / "spool.sqlite", 1_000_000)
    with pytest.raises(StorageError, match="Stop the other process"):
        Spool(tmp_path / "spool.sqlite", 1_000_000)
    first.close()


def test_damaged_spool_is_kept_aside(tmp_path: Path) -> None:
    (tmp_path / "spool.sqlite").write_bytes(b"no database" * 500)
    spool = Spool(tmp_path / "spool.sqlite", 1_000_000)
    spool.add([(1, b"a")])
    assert spool.count == 1
    (damaged,) = tmp_path.glob("spool.sqlite.damaged-*")
    assert damaged.read_bytes().startswith(b"no database")


def test_spool_name_identifies_the_receiver() -> None:
    names = [spool_name(address) for address in ("mqtt://broker:1883/a/b", "mqtt://broker:1883/a-b", "http://broker:1883/a/b")]
    assert len(set(names)) == 3 and names[0].startswith("broker-1883-a-b-")


class Receiver:
    """Receiver in this process that can be away."""

    batch = 3

    def __init__(self) -> None:
        self.away = False
        self.got: list[str] = []
        self.refuse: set[str] = set()

    def connect(self) -> Receiver:
        if self.away:
            raise ConnectionRefusedError("away")
        return self

    def send(self, records: Sequence[bytes]) -> None:
        if self.away:
            raise ConnectionResetError("away")
        ids = [json.loads(item)["id"] for item in records]
        if self.refuse & set(ids):
            raise RejectedError("invalid")
        self.got += ids

    def close(self) -> None: ...


def ids(first: int, last: int) -> list[str]:
    return [f"p-{number}" for number in range(first, last + 1)]


def test_outbox_moves_records_to_the_spool_while_the_receiver_is_away(tmp_path: Path) -> None:
    receiver = Receiver()
    outbox = Outbox("test", receiver.connect, Spool(tmp_path / "spool.sqlite", 1_000_000), memory_records=4)
    assert outbox.put(record(1))
    until(lambda: receiver.got == ["p-1"])
    receiver.away = True
    for number in range(2, 12):
        assert outbox.put(record(number))
    until(lambda: outbox.status().problem == "away")
    assert outbox.status().waiting == 10
    receiver.away = False
    until(lambda: outbox.status().waiting == 0)
    assert outbox.put(record(12))
    until(lambda: len(receiver.got) == 12)
    outbox.close(5)
    assert receiver.got == ids(1, 12) and outbox.status().delivered == 12 and outbox.status().problem == ""


def test_outbox_delivers_the_spool_of_the_last_process_first(tmp_path: Path) -> None:
    receiver = Receiver()
    receiver.away = True
    outbox = Outbox("test", receiver.connect, Spool(tmp_path / "spool.sqlite", 1_000_000))
    for number in range(1, 6):
        assert outbox.put(record(number))
    outbox.close(0.05)
    receiver.away = False
    again = Outbox("test", receiver.connect, Spool(tmp_path / "spool.sqlite", 1_000_000))
    assert again.put(record(6))
    again.close(10)
    assert receiver.got == ids(1, 6)


def test_outbox_without_a_spool_takes_no_more_records_than_its_memory() -> None:
    receiver = Receiver()
    receiver.away = True
    outbox = Outbox("test", receiver.connect, None, memory_records=3)
    assert [outbox.put(record(number)) for number in range(1, 6)] == [True, True, True, False, False]
    outbox.close(0.05)
    assert outbox.status().lost == 3, "reported, not silent"


def test_outbox_takes_no_record_while_the_spool_is_full(tmp_path: Path) -> None:
    receiver = Receiver()
    receiver.away = True
    outbox = Outbox("test", receiver.connect, Spool(tmp_path / "spool.sqlite", 100_000), memory_records=2)
    number = 0
    while outbox.put(record(number + 1, text="x" * 500)):
        number += 1
    assert not outbox.put(record(number + 1, text="x" * 500)) and number > 20
    receiver.away = False
    until(lambda: outbox.put(record(number + 1, text="x" * 500)))
    outbox.close(10)
    assert receiver.got == ids(1, number + 1)


def test_outbox_counts_refused_records_and_continues() -> None:
    receiver = Receiver()
    receiver.batch = 1
    receiver.refuse = {"p-2"}
    outbox = Outbox("test", receiver.connect, None)
    for number in range(1, 4):
        outbox.put(record(number))
    outbox.close(10)
    assert receiver.got == ["p-1", "p-3"] and (outbox.status().delivered, outbox.status().rejected) == (2, 1)


@contextmanager
def http_receiver(port: int = 0) -> Iterator[tuple[int, list[tuple[str, dict[str, str], bytes]], list[int]]]:
    """Serve HTTP. Yield the port, the received requests, and the statuses of the next responses."""
    received: list[tuple[str, dict[str, str], bytes]] = []
    statuses: list[int] = []
    connections: list[socket.socket] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            connections.append(self.connection)

        def do_POST(self) -> None:
            received.append((self.path, dict(self.headers), self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(statuses.pop(0) if statuses else 204)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_address[1], received, statuses
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def test_http_sink_posts_each_record_with_the_token() -> None:
    with http_receiver() as (port, received, _):
        url = urlsplit(f"http://127.0.0.1:{port}/in?site=7")
        outbox = Outbox("test", lambda: HttpConnection(url, "secret"), None)
        for number in (1, 2):
            outbox.put(record(number))
        outbox.close(10)
    assert [(path, headers["Authorization"], headers["Content-Type"]) for path, headers, _ in received] == [
        ("/in?site=7", "Bearer secret", "application/json")
    ] * 2
    assert [json.loads(body)["id"] for _, _, body in received] == ["p-1", "p-2"]


def test_http_sink_repeats_after_a_server_error_and_drops_an_invalid_record() -> None:
    with http_receiver() as (port, received, statuses):
        statuses += [503, 500, 200, 422, 302, 201]
        url = urlsplit(f"http://127.0.0.1:{port}/")
        outbox = Outbox("test", lambda: HttpConnection(url, None), None)
        for number in (1, 2, 3):
            outbox.put(record(number))
        outbox.close(20)
    assert [json.loads(body)["id"] for _, _, body in received] == ["p-1", "p-1", "p-1", "p-2", "p-3", "p-3"]
    assert (outbox.status().delivered, outbox.status().rejected) == (2, 1)


def test_http_server_may_disappear_and_return() -> None:
    with http_receiver() as (port, first, _):
        outbox = Outbox("test", lambda: HttpConnection(urlsplit(f"http://127.0.0.1:{port}/"), None), None)
        outbox.put(record(1))
        until(lambda: outbox.status().delivered == 1)
    outbox.put(record(2))
    until(lambda: outbox.status().problem != "")
    with http_receiver(port) as (_, second, _):
        outbox.close(20)
    assert [json.loads(body)["id"] for _, _, body in [*first, *second]] == ["p-1", "p-2"]


@pytest.fixture
def mosquitto() -> str:
    """Program of the Mosquitto broker (Debian package ``mosquitto``)."""
    pytest.importorskip("paho.mqtt.client")
    program = shutil.which("mosquitto") or shutil.which("/usr/sbin/mosquitto")
    if program is None:
        pytest.skip("the broker mosquitto is not installed (Debian package mosquitto)")
    return program


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def accepts_connections(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def broker(program: str, folder: Path, port: int, *settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a broker on loopback, without a state on the disk."""
    configuration = folder / "mosquitto.conf"
    # The broker gives up root, and then cannot read the temporary folder.
    user = ["user root"] if os.geteuid() == 0 else []
    lines = [*user, f"listener {port} 127.0.0.1", "log_type none", *(settings or ["allow_anonymous true"])]
    configuration.write_text("\n".join(lines) + "\n")
    process = subprocess.Popen([program, "-c", configuration], stderr=subprocess.DEVNULL)
    try:
        until(lambda: accepts_connections(port))
        yield process
    finally:
        process.kill()
        process.wait()


class Subscriber:
    """Subscriber of the topic, as the receiving side has it."""

    def __init__(self, port: int, topic: str) -> None:
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion

        self.ids: list[str] = []
        subscribed = threading.Event()
        self._client = Client(CallbackAPIVersion.VERSION2, reconnect_on_failure=False)
        self._client.on_message = lambda _client, _data, message: self.ids.append(json.loads(message.payload)["id"])
        self._client.on_subscribe = lambda *_: subscribed.set()
        self._client.connect("127.0.0.1", port)
        self._client.subscribe(topic, qos=1)
        self._client.loop_start()
        subscribed.wait()

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def mqtt_outbox(url: str, password: str | None = None, spool: Spool | None = None, *, memory_records: int = 1000) -> Outbox:
    from edgetl.device.runner.sinks.to_mqtt import MqttConnection

    return Outbox("broker", lambda: MqttConnection(urlsplit(url), password), spool, memory_records=memory_records)


def test_mqtt_records_arrive_while_the_broker_disappears_and_returns(mosquitto: str, tmp_path: Path) -> None:
    port = free_port()
    outbox = mqtt_outbox(f"mqtt://127.0.0.1:{port}/cam/1", spool=Spool(tmp_path / "spool.sqlite", 1_000_000), memory_records=50)
    with broker(mosquitto, tmp_path, port):
        subscriber = Subscriber(port, "cam/1")
        for number in range(1, 301):
            outbox.put(record(number))
        until(lambda: len(subscriber.ids) >= 300)
        subscriber.close()
    got = subscriber.ids
    for number in range(301, 601):
        assert outbox.put(record(number))
    until(lambda: outbox.status().problem != "")
    assert outbox.status().waiting == 300
    with broker(mosquitto, tmp_path, port):
        subscriber = Subscriber(port, "cam/1")
        outbox.put(record(601))
        outbox.close(60)
        until(lambda: "p-601" in subscriber.ids)
        subscriber.close()
    got = [*got, *subscriber.ids]
    # A broker that accepts a connection before the subscriber does may get records without a receiver.
    assert got[:300] == ids(1, 300) and got[-1] == "p-601"
    assert outbox.status().delivered == 601 and outbox.status().waiting == 0


def test_mqtt_broker_that_refuses_the_password_is_reported(mosquitto: str, tmp_path: Path) -> None:
    hashes = shutil.which("mosquitto_passwd")
    if hashes is None:
        pytest.skip("mosquitto_passwd is not installed (Debian package mosquitto)")
    subprocess.run([hashes, "-b", "-c", tmp_path / "passwords", "me", "right"], check=True)
    (tmp_path / "passwords").chmod(0o644)
    port = free_port()
    with broker(mosquitto, tmp_path, port, "allow_anonymous false", f"password_file {tmp_path}/passwords"):
        wrong = mqtt_outbox(f"mqtt://me@127.0.0.1:{port}/cam", "wrong")
        wrong.put(record(1))
        until(lambda: wrong.status().problem != "")
        assert wrong.status().problem == "the broker refuses the connection: Not authorized"
        wrong.close(0)
        right = mqtt_outbox(f"mqtt://me@127.0.0.1:{port}/cam", "right")
        right.put(record(1))
        right.close(60)
        assert right.status().delivered == 1


@pytest.mark.filterwarnings("ignore:unclosed <ssl:ResourceWarning")  # of paho, after a failed handshake
def test_mqtts_verifies_the_certificate(mosquitto: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.serve.certificates import write_certificate

    port = free_port()
    certificate, key = write_certificate(tmp_path)
    for path in (certificate, key):
        path.chmod(0o644)
    with broker(mosquitto, tmp_path, port, f"certfile {certificate}", f"keyfile {key}", "allow_anonymous true"):
        unknown = mqtt_outbox(f"mqtts://127.0.0.1:{port}/cam")
        unknown.put(record(1))
        until(lambda: unknown.status().problem != "")
        assert "certificate verify failed" in unknown.status().problem
        unknown.close(0)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        known = mqtt_outbox(f"mqtts://127.0.0.1:{port}/cam")
        known.put(record(1))
        known.close(60)
        assert known.status().delivered == 1


def test_the_label_of_an_unknown_image_is_null_in_json_and_empty_in_csv() -> None:
    unknown = record(1, label=None, score=0.4)
    assert json.loads(unknown.to_json())["label"] is None
    (row,) = csv.DictReader(unknown.to_csv().decode().splitlines(), COLUMNS)
    assert (row["label"], row["score"]) == ("", "0.4")
