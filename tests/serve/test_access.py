"""Access to the server: bearer token, TLS, request ids, access log."""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgetl.core.bundle import Bundle
from edgetl.errors import ConfigError
from edgetl.serve.config import ServeConfig
from edgetl.serve.connections.middleware import read_token
from edgetl.serve.tls import check_certificate
from tests.command import edgetl
from tests.serve.certificates import write_certificate
from tests.serve.serving import TOKEN, Served, serving, until


@pytest.mark.parametrize("path", ["/v2/health/ready", "/v2/health/live", "/", "/page.js"])
def test_health_and_page_need_no_token(token_server: Served, path: str) -> None:
    assert httpx.get(f"{token_server.url}{path}", timeout=None).status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"Bearer",
        b"Bearer " + TOKEN[:-1].encode(),
        b"Bearer " + TOKEN.encode() + b"x",
        TOKEN.encode(),
        b"Basic " + TOKEN.encode(),
        b"Bearer " + b"a" * 20_000,
        b"Bearer \xff\xfe",
        f"Bearer {TOKEN.upper()}".encode(),
    ],
    ids=["empty", "no token", "shorter", "longer", "no scheme", "other scheme", "very long", "not ASCII", "other case"],
)
def test_wrong_token_gets_401(token_server: Served, bundle: Bundle, header: bytes) -> None:
    paths = ["/v2", "/metrics", f"/v2/models/{bundle.manifest.name}", "/nothing", "/models", "/openapi.json", "/v2/health/../../v2"]
    with httpx.Client(base_url=token_server.url, timeout=None) as web:
        for path in paths:
            response = web.get(path, headers=[(b"Authorization", header)])
            assert response.status_code == 401 and response.headers["WWW-Authenticate"] == "Bearer", path
            assert TOKEN not in response.text, path


def test_correct_token_gets_a_prediction(token_server: Served, photo: bytes) -> None:
    with httpx.Client(base_url=token_server.url, timeout=None) as web:
        assert web.post("/predict", content=photo).status_code == 401
        for scheme in ("Bearer", "bearer"):
            assert web.post("/predict", content=photo, headers={"Authorization": f"{scheme} {TOKEN}"}).status_code == 200


@pytest.mark.parametrize(
    "content",
    [b"", b"short", b"two lines of a token\nand more", b"with a space inside it", b"\xff" * 32, b"a" * 5000],
    ids=["empty", "short", "two lines", "space", "not ASCII", "long"],
)
def test_invalid_token_file_is_rejected(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(ConfigError, match="openssl rand -hex 32"):
        read_token(tmp_path / "token")


def test_missing_token_file_is_a_configuration_error(bundle: Bundle, tmp_path: Path) -> None:
    done = edgetl("serve", bundle.path, "--token-file", tmp_path / "none")
    assert done.returncode == ConfigError.exit_code and "cannot read the token file" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ({}, "Add --token-file and --tls-cert with --tls-key"),
        ({"token_file": Path("token")}, "Add --tls-cert with --tls-key"),
        ({"tls_cert": Path("x"), "tls_key": Path("y")}, "Add --token-file"),
    ],
    ids=["no options", "token only", "TLS only"],
)
def test_other_hosts_need_a_token_and_tls(options: dict[str, Any], missing: str) -> None:
    with pytest.raises(ConfigError, match=f"{missing}.*--insecure"):
        ServeConfig(host="0.0.0.0", **options)
    assert ServeConfig(host="0.0.0.0", insecure=True, **options).host == "0.0.0.0"


def test_certificate_needs_a_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="need each other"):
        ServeConfig(tls_cert=tmp_path)


def test_tls_server_accepts_only_tls(tls_server: Served, certificate: tuple[Path, Path], photo: bytes) -> None:
    assert "expires in 4 day(s)" in tls_server.log() and f"listening on {tls_server.url}" in tls_server.log()
    trusting = ssl.create_default_context(cafile=str(certificate[0]))
    assert httpx.post(f"{tls_server.url}/predict", content=photo, verify=trusting, timeout=None).status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{tls_server.url}/v2", timeout=None)
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://{tls_server.address}/v2", timeout=None)
    tls_1_2 = ssl.create_default_context(cafile=str(certificate[0]))
    tls_1_2.minimum_version = tls_1_2.maximum_version = ssl.TLSVersion.TLSv1_2
    assert httpx.get(f"{tls_server.url}/v2/health/live", verify=tls_1_2, timeout=None).status_code == 200


def test_invalid_certificate_is_rejected(tmp_path: Path) -> None:
    good, key = write_certificate(tmp_path)
    expired, expired_key = write_certificate(tmp_path, begin=timedelta(days=-9), end=timedelta(days=-1), name="expired")
    early, early_key = write_certificate(tmp_path, begin=timedelta(days=1), name="early")
    (tmp_path / "empty").touch()
    cases = [
        (expired, expired_key, "expired on"),
        (early, early_key, "Check the clock"),
        (good, expired_key, "cannot be used together"),
        (tmp_path / "none", key, "cannot read"),
        (tmp_path / "empty", key, "contains no certificate"),
        (good, tmp_path / "none", "cannot be used together"),
        (tmp_path, key, "cannot read"),
    ]
    for certificate, its_key, message in cases:
        with pytest.raises(ConfigError, match=message):
            check_certificate(certificate, its_key)
    assert check_certificate(good, key) == ""


def test_expired_certificate_stops_the_start(bundle: Bundle, tmp_path: Path) -> None:
    expired, key = write_certificate(tmp_path, begin=timedelta(days=-9), end=timedelta(days=-1))
    done = edgetl("serve", bundle.path, "--tls-cert", expired, "--tls-key", key)
    assert done.returncode == ConfigError.exit_code and "expired on" in done.stderr and "Traceback" not in done.stderr


def test_access_log_has_one_json_line_per_request(served: Served, bundle: Bundle, photo: bytes) -> None:
    """Text from a client cannot forge a line."""
    before = len(served.access_log())
    with httpx.Client(base_url=served.url, timeout=None) as web:
        infer = f"/v2/models/{bundle.manifest.name}/infer"
        assert web.post("/predict", content=photo, headers={"X-Request-Id": "line-3/7"}).headers["X-Request-Id"] == "line-3/7"
        odd = '"} \\n forged {"'
        assert web.get("/v2", headers={"X-Request-Id": odd}).headers["X-Request-Id"] == odd
        assert len(web.get("/v2").headers["X-Request-Id"]) == 16
        for bad in (b"", b"a" * 129, b"\x1b[31mred", "\N{SNOWMAN}".encode(), b"tab\there"):
            response = web.get("/v2", headers=[(b"X-Request-Id", bad)])
            assert response.status_code == 400 and bad.decode() not in list(response.headers.values())
        web.get("/%0a%1b[31mforged%22%7d%0d%0a")
        for text in ("line\nbreak", "\N{SNOWMAN}", "\x1b[31m", 'quo"te\\'):
            body = {"id": text, "inputs": [{"name": "input", "shape": [1], "datatype": "BYTES", "data": [""]}]}
            assert web.post(infer, json=body).status_code == 400
            image = base64.b64encode(photo).decode()
            body = {"id": text, "inputs": [{"name": "input", "shape": [1], "datatype": "BYTES", "data": [image]}]}
            assert web.post(infer, json=body).json()["id"] == text
        assert web.post(infer, json={"id": "a" * 1_000_000, "inputs": []}).status_code == 400
    until(lambda: len(served.access_log()) >= before + 18)
    lines = [json.loads(line) for line in served.access_log()[before:]]
    # The escape character in a header is malformed HTTP. Its line has no path.
    assert len(lines) == 18 and [line["path"] for line in lines].count("") == 1
    assert lines[0]["id"] == "line-3/7" and lines[0]["status"] == 200 and lines[0]["path"] == "/predict" and lines[0]["ms"] > 0
    assert lines[1]["id"] == odd and all(set(line) == set(lines[0]) for line in lines)


def test_full_disk_does_not_stop_the_server(bundle: Bundle, photo: bytes) -> None:
    with open("/dev/full", "wb") as full, serving(bundle.path, stdout=full) as served:
        for _ in range(20):
            assert httpx.post(f"{served.url}/predict", content=photo, timeout=None).status_code == 200
        assert "Traceback" not in served.log()


def test_unread_access_log_does_not_stop_the_server(bundle: Bundle) -> None:
    with serving(bundle.path, stdout=subprocess.PIPE) as served, httpx.Client(base_url=served.url, timeout=None) as web:
        # The lines of 600 requests exceed the 64 KiB of a pipe.
        for _ in range(600):
            assert web.get("/v2/health/live").status_code == 200
        assert served.process.stdout is not None
        served.process.stdout.close()


def test_metrics_do_not_grow_with_requests(served: Served) -> None:
    with httpx.Client(base_url=served.url, timeout=None) as web:
        first = web.get("/metrics").text
        for number in range(100):
            web.get(f"/v2/models/invented-{number}", headers={"X-Request-Id": f"id-{number}"})
        last = web.get("/metrics").text
    assert len(last.splitlines()) <= len(first.splitlines()) + 10 and "invented" not in last


def test_imports_print_nothing() -> None:
    """The standard output contains only the access log."""
    code = "import edgetl.serve.run, edgetl.serve.workers.worker_process"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert not done.stdout and not done.stderr


def test_only_the_access_log_uses_the_wall_clock() -> None:
    """Durations and deadlines use a monotonic clock, so a change of the system time does not affect them."""
    import edgetl.serve

    for path in Path(str(edgetl.serve.__file__)).parent.rglob("*.py"):
        assert path.read_text().count("time.time()") == (1 if path.name == "middleware.py" else 0), path.name
