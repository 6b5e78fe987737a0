"""Who may come in, over what, and what the log says about it."""

from __future__ import annotations

import base64
import ipaddress
import json
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edgetl.core.bundle import Bundle
from tests.command import edgetl
from tests.serve.serving import Served, serving

TOKEN = "a-token-that-nobody-guesses"


@pytest.fixture(scope="module")
def token_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("token") / "token"
    path.write_text(TOKEN + "\n")
    return path


def test_with_a_token_only_those_who_have_it_come_in(bundle: Bundle, photo: bytes, token_file: Path) -> None:
    """Health is open to whoever looks after the server; the page asks for the token itself."""
    with serving(bundle.path, options=("--token-file", str(token_file))) as served, httpx.Client(base_url=served.url) as web:
        assert web.get("/v2/health/ready").status_code == web.get("/v2/health/live").status_code == web.get("/").status_code == 200
        wrong: list[bytes] = [b"", b"Bearer", b"Bearer " + TOKEN[:-1].encode(), b"Bearer " + TOKEN.encode() + b"x"]
        wrong += [
            TOKEN.encode(),
            b"Basic " + TOKEN.encode(),
            b"Bearer " + b"a" * 20_000,
            b"Bearer \xff\xfe",
            f"Bearer {TOKEN.upper()}".encode(),
        ]
        for header in wrong:
            for path in (
                "/v2",
                "/metrics",
                f"/v2/models/{bundle.manifest.name}",
                "/nothing",
                "/models",
                "/openapi.json",
                "/v2/health/../../v2",
            ):
                answer = web.get(path, headers=[(b"Authorization", header)])
                assert answer.status_code == 401 and answer.headers["WWW-Authenticate"] == "Bearer" and TOKEN not in answer.text, (
                    header,
                    path,
                )
        assert web.post("/predict", content=photo).status_code == 401
        for kind in ("Bearer", "bearer"):
            assert web.post("/predict", content=photo, headers={"Authorization": f"{kind} {TOKEN}"}).status_code == 200


@pytest.mark.parametrize(
    "content", [b"", b"short", b"two lines of a token\nand more", b"with a space inside it", b"\xff" * 32, b"a" * 5000]
)
def test_a_token_file_that_cannot_protect_is_refused(bundle: Bundle, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "token").write_bytes(content)
    done = edgetl("serve", bundle.path, "--token-file", tmp_path / "token")
    assert done.returncode == 3 and "openssl rand -hex 32" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "Add --token-file and --tls-cert with --tls-key"),
        (("token",), "Add --tls-cert with --tls-key"),
        (("tls",), "Add --token-file"),
    ],
)
def test_beyond_this_machine_a_token_and_tls_are_asked_for(bundle: Bundle, token_file: Path, options: tuple[str, ...], said: str) -> None:
    given = {"token": ("--token-file", token_file), "tls": ("--tls-cert", "x", "--tls-key", "y")}
    done = edgetl("serve", bundle.path, "--host", "0.0.0.0", *(part for name in options for part in given[name]))
    assert done.returncode == 3 and said in done.stderr and "--insecure" in done.stderr


def certificate(
    folder: Path, *, begin: timedelta = timedelta(days=-1), end: timedelta = timedelta(days=100), name: str = "own"
) -> tuple[Path, Path]:
    """A self-signed certificate of 127.0.0.1 and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "edgetl test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begin)
        .not_valid_after(now + end)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = folder / f"{name}.crt", folder / f"{name}.key"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    kind = serialization.PrivateFormat.PKCS8
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption()))
    return paths


def test_tls_is_spoken_and_nothing_else(bundle: Bundle, photo: bytes, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, end=timedelta(days=5))
    with serving(bundle.path, options=("--tls-cert", str(cert), "--tls-key", str(key)), scheme="https") as served:
        assert "expires in 4 day(s)" in served.said() and f"listening on {served.url}" in served.said()
        trusting = ssl.create_default_context(cafile=str(cert))
        assert httpx.post(f"{served.url}/predict", content=photo, verify=trusting).status_code == 200
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{served.url}/v2")
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://{served.address}/v2")
        old = ssl.create_default_context(cafile=str(cert))
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
        assert httpx.get(f"{served.url}/v2/health/live", verify=old).status_code == 200
        assert "Traceback" not in served.said()


def test_a_certificate_that_no_client_would_accept_is_refused_at_the_start(bundle: Bundle, tmp_path: Path) -> None:
    """C23."""
    good, key = certificate(tmp_path)
    expired, expired_key = certificate(tmp_path, begin=timedelta(days=-9), end=timedelta(days=-1), name="expired")
    early, early_key = certificate(tmp_path, begin=timedelta(days=1), name="early")
    (tmp_path / "empty").touch()
    cases = [
        (expired, expired_key, "expired on"), (early, early_key, "Is the clock right?"), (good, expired_key, "cannot be used together"),
        (tmp_path / "none", key, "cannot read"), (tmp_path / "empty", key, "holds no certificate"),
        (good, tmp_path / "none", "cannot be used together"),
        (tmp_path, key, "cannot read"),
    ]  # fmt: skip
    for cert, its_key, said in cases:
        done = edgetl("serve", bundle.path, "--tls-cert", cert, "--tls-key", its_key)
        assert done.returncode == 3 and said in done.stderr and "Traceback" not in done.stderr, (said, done.stderr)
    done = edgetl("serve", bundle.path, "--tls-cert", good)
    assert done.returncode == 3 and "need each other" in done.stderr


def test_an_id_comes_back_and_the_log_holds_one_line_of_json_for_each_request(bundle: Bundle, photo: bytes, tmp_path: Path) -> None:
    """Input of a client cannot forge a line."""
    with (tmp_path / "log").open("wb") as log, serving(bundle.path, stdout=log) as served, httpx.Client(base_url=served.url) as web:
        name = bundle.manifest.name
        plain = str(uuid.uuid4())
        assert web.post("/predict", content=photo, headers={"X-Request-Id": plain}).headers["X-Request-Id"] == plain
        odd = '"} \\n forged {"'
        assert web.get("/v2", headers={"X-Request-Id": odd}).headers["X-Request-Id"] == odd
        assert len(web.get("/v2").headers["X-Request-Id"]) == 16
        for bad in (b"", b"a" * 129, b"\x1b[31mred", "\N{SNOWMAN}".encode(), b"tab\there"):
            answer = web.get("/v2", headers=[(b"X-Request-Id", bad)])
            assert answer.status_code == 400 and bad.decode() not in list(answer.headers.values())
        web.get("/%0a%1b[31mforged%22%7d%0d%0a")
        for text in ("line\nbreak", "\N{SNOWMAN}", "\x1b[31m", 'quo"te\\'):
            body = {"id": text, "inputs": [{"name": "input", "shape": [1], "datatype": "BYTES", "data": [""]}]}
            assert web.post(f"/v2/models/{name}/infer", json=body).status_code == 400
            image = base64.b64encode(photo).decode()
            body = {"id": text, "inputs": [{"name": "input", "shape": [1], "datatype": "BYTES", "data": [image]}]}
            assert web.post(f"/v2/models/{name}/infer", json=body).json()["id"] == text, "echoed as it came"
        assert web.post(f"/v2/models/{name}/infer", json={"id": "a" * 1_000_000, "inputs": []}).status_code == 400
        time.sleep(0.5)
    lines = [json.loads(line) for line in (tmp_path / "log").read_bytes().decode("ascii").splitlines()]
    # Also of the escape in a header, which is no HTTP and was cut off before anything was known of it.
    assert len(lines) == 18 and [line["path"] for line in lines].count("") == 1
    assert lines[0]["id"] == plain and lines[0]["status"] == 200 and lines[0]["path"] == "/predict" and lines[0]["ms"] > 0
    assert lines[1]["id"] == odd and all(set(line) == set(lines[0]) for line in lines)


def test_a_log_that_cannot_be_written_stops_nothing(bundle: Bundle, photo: bytes) -> None:
    """A full disk, and a pipe that nobody reads."""
    with open("/dev/full", "wb") as full, serving(bundle.path, stdout=full) as served:
        for _ in range(50):
            assert httpx.post(f"{served.url}/predict", content=photo).status_code == 200
        assert "Traceback" not in served.said()
    with serving(bundle.path, stdout=subprocess.PIPE) as served, httpx.Client(base_url=served.url) as web:
        for _ in range(1500):
            assert web.get("/v2/health/live").status_code == 200
        assert served.process.stdout is not None
        threading.Timer(3, served.process.stdout.close).start()


def test_metrics_read_a_hundred_times_a_second_stay_small(served: Served, photo: bytes) -> None:
    """C24."""
    with httpx.Client(base_url=served.url) as web:
        first = web.get("/metrics").text
        begin = time.monotonic()
        for number in range(100):
            web.get(f"/v2/models/invented-{number}", headers={"X-Request-Id": f"id-{number}"})
            assert web.get("/metrics").status_code == 200
        assert time.monotonic() - begin < 20
        last = web.get("/metrics").text
    assert len(last.splitlines()) <= len(first.splitlines()) + 10 and "invented" not in last


def test_the_library_says_nothing_on_the_standard_output() -> None:
    """The access log's lines are all that a machine reads there."""
    code = "import edgetl.serve.run, edgetl.serve.workers.worker_process"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert not done.stdout and not done.stderr


def test_time_on_the_clock_decides_nothing(served: Served) -> None:
    """A clock that is set back moves no deadline, since every duration is taken from one that only goes forward."""
    import edgetl.serve

    for path in Path(str(edgetl.serve.__file__)).parent.rglob("*.py"):
        uses = path.read_text().count("time.time()")
        assert uses == (1 if path.name == "middleware.py" else 0), f"{path.name}: the access log alone says what time it is"
    assert tempfile.gettempdir() not in served.said()
