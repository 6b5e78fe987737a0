"""Download of transport files: resumed transfers, limits, and refused responses."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from edgetl.device.store import download as module
from edgetl.device.store.config import InstallConfig
from edgetl.device.store.download import download
from edgetl.device.store.install import install
from edgetl.device.store.status import read_status
from edgetl.device.transport import pack, read_head
from edgetl.errors import BundleError, InstallError, IntegrityError, StorageError, StoreError
from tests.device.bundles import add_release, pass_self_test, release_in_use, write_bundle
from tests.device.file_server import Handler, Server, served
from tests.disks import fill, small_disk

TEST = InstallConfig(allow_http=True)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Transport file that is larger than the part with the manifest."""
    root = tmp_path_factory.mktemp("packed")
    pack(write_bundle(root / "2", 2, note="x" * (module.HEAD_BYTES + 300_000)), root / "2.edgetl")
    return (root / "2.edgetl").read_bytes()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "part.edgetl"


def _size(path: Path) -> int:
    with path.open("rb") as stream:
        return read_head(stream, "the download").size_bytes


def _get(server: Server, target: Path) -> None:
    download(server.url, target, signed_size=_size, allow_http=True, wait=lambda _: None)


def _whole(data: bytes, **headers: str) -> Callable[[Handler], None]:
    return lambda handler: handler.send(200, data, Content_Length=str(len(data)), **headers)


def test_a_url_is_installed(packed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgetl.device.store.install.self_test", pass_self_test)
    with served(_whole(packed, ETag='"1"')) as server:
        install(server.url, tmp_path / "store", TEST)
    assert release_in_use(tmp_path / "store") == 2
    assert list((tmp_path / "store/downloads").iterdir()) == []


def test_the_download_of_the_active_release_ends_after_its_head(packed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgetl.device.store.install.self_test", pass_self_test)
    store, most = tmp_path / "store", len(packed)
    with served(lambda handler: handler.send_rest(packed, most=most)) as server:
        install(server.url, store, TEST)
        most = module.HEAD_BYTES + 1000  # a client that needs more of the file finds the connection closed
        assert install(server.url, store, TEST).unchanged
        assert len(server.requests) == 2 and list((store / "downloads").iterdir()) == []
        damaged = next(path for path in (store / "releases").rglob("*") if path.is_file() and path.name != "manifest.json")
        damaged.write_bytes(b"")
        most = len(packed)
        assert not install(server.url, store, TEST).unchanged, "the whole file is needed to repair the release"


def test_an_interrupted_download_is_continued(packed: bytes, target: Path) -> None:  # D10
    def respond(handler: Handler) -> None:
        handler.send_rest(packed, most=500_000 if "Range" in handler.headers else 1000)

    with served(respond) as server:
        _get(server, target)
    assert target.read_bytes() == packed
    assert [request.get("If-Range") for request in server.requests] == [None, '"1"', '"1"', '"1"']


def test_a_file_that_changed_on_the_server_is_downloaded_again(packed: bytes, target: Path) -> None:  # D10
    target.write_bytes(b"an older file")
    target.with_suffix(".etag").write_text('"old"')
    with served(_whole(packed, ETag='"new"')) as server:
        _get(server, target)
    assert target.read_bytes() == packed


def test_a_partial_response_of_another_file_is_not_joined(packed: bytes, target: Path) -> None:  # D10
    target.write_bytes(packed[:1000])
    target.with_suffix(".etag").write_text('"old"')

    def respond(handler: Handler) -> None:
        if "Range" in handler.headers:
            size = len(packed)
            handler.send(206, packed[1000:], Content_Range=f"bytes 1000-{size - 1}/{size}", Content_Length=str(size - 1000), ETag='"new"')
        else:
            _whole(packed, ETag='"new"')(handler)

    with served(respond) as server:
        _get(server, target)
    assert target.read_bytes() == packed


def test_a_part_without_a_strong_tag_is_not_continued(packed: bytes, target: Path) -> None:
    target.write_bytes(b"x" * 100)
    target.with_suffix(".etag").write_text('W/"weak"')
    with served(_whole(packed)) as server:
        _get(server, target)
    assert "Range" not in server.requests[0]


def test_the_received_part_is_kept_after_all_attempts(packed: bytes, target: Path) -> None:  # D10
    def respond(handler: Handler) -> None:
        handler.send(200, packed[:1000], Content_Length=str(len(packed)), ETag='"1"')
        handler.close_connection = True

    with served(respond) as server, pytest.raises(InstallError, match=r"connection was closed after 1,000 of .* Run the command again"):
        _get(server, target)
    assert len(server.requests) == module.ATTEMPTS
    assert target.read_bytes() == packed[:1000]


REFUSED: dict[str, tuple[Callable[[bytes], Callable[[Handler], None]], type[Exception], str]] = {
    "a web page": (lambda data: _whole(b"<html>Log in</html>", Content_Type="text/html; charset=utf-8"), InstallError, "is a web page"),
    "a compressed response": (lambda data: _whole(data, Content_Encoding="gzip"), InstallError, "compresses the file"),
    "another file": (lambda data: _whole(b"x" * 100), BundleError, "is not a transport file"),
    "a missing file": (lambda data: lambda handler: handler.send(404), InstallError, "the server responded 404 Not Found"),
    "more bytes than signed": (lambda data: _whole(data + b"x"), IntegrityError, "but its manifest gives a size of"),
    "an endless stream": (lambda data: lambda handler: _endless(handler, data), IntegrityError, "but its manifest gives a size of"),
    "a redirect to a file": (
        lambda data: lambda handler: handler.send(302, Location="file:///etc/passwd"),
        InstallError,
        "file:///etc/passwd' is not allowed",
    ),
    "a redirect to http": (
        lambda data: lambda handler: handler.send(302, Location="http://example.com/a.edgetl"),
        InstallError,
        "http://example.com/a.edgetl is refused: downloads need https",
    ),
}


def _endless(handler: Handler, data: bytes) -> None:
    handler.send(200, data)
    while True:
        handler.wfile.write(bytes(100_000))


@pytest.mark.parametrize("case", list(REFUSED))
def test_a_response_is_refused(packed: bytes, target: Path, case: str) -> None:  # D10
    respond, error, message = REFUSED[case]
    with served(respond(packed)) as server, pytest.raises(error, match=message):
        _get(server, target)
    assert not target.exists()


def test_a_redirect_loop_ends(target: Path) -> None:
    with served(lambda handler: handler.send(302, Location="/again")) as server, pytest.raises(InstallError, match="responded 302"):
        _get(server, target)


def test_a_server_that_sends_single_bytes_is_not_waited_for(packed: bytes, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # D10
    monkeypatch.setattr(module, "INTERVAL_S", 0.05)
    monkeypatch.setattr(module, "ATTEMPTS", 2)
    ended = threading.Event()

    def respond(handler: Handler) -> None:
        handler.send(200, ETag='"1"')
        for index in range(10_000):
            handler.wfile.write(packed[index : index + 1])
            if ended.wait(0.01):
                return

    with served(respond) as server:
        with pytest.raises(InstallError, match="the server sent only"):
            _get(server, target)
        ended.set()


def test_a_server_that_does_not_respond_is_not_waited_for(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # D10
    monkeypatch.setattr(module, "TIMEOUT_S", 0.05)
    monkeypatch.setattr(module, "ATTEMPTS", 2)
    ended = threading.Event()
    with served(lambda _: (ended.wait(60), None)[1]) as server:
        with pytest.raises(InstallError, match="timed out"):
            _get(server, target)
        ended.set()


@pytest.mark.parametrize("url", ["http://example.com/a.edgetl", "ftp://example.com/a", "file:///a.edgetl", "https://", "https://[x/a"])
def test_a_url_without_https_is_refused(url: str, target: Path) -> None:
    with pytest.raises(InstallError, match=r"need https|not a valid URL"):
        download(url, target, signed_size=_size, allow_http=True)


def test_http_needs_its_option(target: Path) -> None:
    with pytest.raises(InstallError, match="downloads need https"):
        download("http://127.0.0.1:1/a.edgetl", target, signed_size=_size)


def test_a_disk_that_fills_up_during_a_download_leaves_the_active_release(
    packed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # D3
    monkeypatch.setattr("edgetl.device.store.install.check_space", lambda *_: None)
    with small_disk(tmp_path / "disk", "4m") as disk, served(lambda handler: handler.send_rest(packed)) as server:
        store = disk / "store"
        add_release(store, write_bundle(tmp_path / "1", 1))
        for spare in (0, 100_000):
            filler = fill(disk)
            os.truncate(filler, filler.stat().st_size - spare)
            with pytest.raises(StorageError, match="No space left on device"):
                install(server.url, store, TEST)
            assert release_in_use(store) == 1
            assert [path.name for path in (store / "downloads").iterdir()] == []
            filler.unlink()
        install(server.url, store, TEST)
        assert release_in_use(store) == 2


def test_a_last_block_that_does_not_fit_on_the_disk_is_an_error(packed: bytes, tmp_path: Path) -> None:  # D3
    """The system writes a part of the block, without an error."""
    page = os.sysconf("SC_PAGE_SIZE")
    with small_disk(tmp_path / "disk", "4m") as disk, served(lambda handler: handler.send_rest(packed)) as server:
        filler = fill(disk)
        os.truncate(filler, filler.stat().st_size - len(packed) // page * page - page)  # the entity tag needs a page
        with pytest.raises(StorageError, match="No space left on device"):
            _get(server, disk / "part.edgetl")


def test_a_refused_download_leaves_the_active_release(packed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgetl.device.store.install.self_test", pass_self_test)
    store = tmp_path / "store"
    install(str(write_bundle(tmp_path / "1", 1)), store)
    with served(_whole(b"<html></html>", Content_Type="text/html")) as server, pytest.raises(InstallError):
        install(server.url, store, TEST)
    damaged = packed[:-2000] + b"y" + packed[-1999:]
    with served(_whole(damaged)) as server, pytest.raises(IntegrityError):
        install(server.url, store, TEST)
    assert release_in_use(store) == 1
    assert list((store / "downloads").iterdir()) == []
    assert read_status(store).damaged == ()
    with pytest.raises(StoreError):
        read_status(tmp_path / "other")
