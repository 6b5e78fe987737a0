"""Request body reader: limits on size, time, rate and total memory. The event loop has a clock of its own, which waits for nothing."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from starlette.requests import Request

from edgetl.errors import RequestError
from edgetl.serve.protocol.body import BodyReader, content_encoding


class _Selector(selectors.SelectSelector):
    """Selector that advances ``now`` by the time that the event loop wants to wait."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        self.now += max(0.0, timeout or 0.0)
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.clock = _Selector()
        super().__init__(self.clock)

    def time(self) -> float:
        return self.clock.now


def _run(work: Callable[[], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        return await work()

    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(main())


# A chunk of a body, or a pause in seconds.
_Step = bytes | float


def _request(*steps: _Step, disconnects: bool = False, headers: dict[str, str] | None = None) -> Request:
    remaining = list(steps)

    async def receive() -> dict[str, Any]:
        while remaining:
            step = remaining.pop(0)
            if isinstance(step, bytes):
                return {"type": "http.request", "body": step, "more_body": bool(remaining) or disconnects}
            await asyncio.sleep(step)
        return {"type": "http.disconnect"} if disconnects else {"type": "http.request", "body": b"", "more_body": False}

    raw = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": raw}, receive)


def _reader(max_bytes: int = 10_000, max_total_bytes: int = 20_000, timeout_s: float = 60) -> BodyReader:
    return BodyReader(max_bytes=max_bytes, max_total_bytes=max_total_bytes, timeout_s=timeout_s)


def _error(reader: BodyReader, request: Request) -> tuple[int, str]:
    with pytest.raises(RequestError) as caught:
        _run(lambda: reader.read(request))
    return caught.value.status, str(caught.value)


def test_a_body_is_the_sum_of_its_chunks() -> None:
    assert _run(lambda: _reader().read(_request(b"ab", b"", b"cde"))) == b"abcde"
    assert _run(lambda: _reader().read(_request())) == b""


def test_a_body_of_exactly_the_limit_is_read() -> None:
    assert len(_run(lambda: _reader(max_bytes=10).read(_request(bytes(6), bytes(4), headers={"content-length": "10"})))) == 10


@pytest.mark.parametrize(
    ("chunks", "headers"), [((bytes(6), bytes(5)), {}), ((bytes(3),), {"content-length": "11"})], ids=["by chunks", "by Content-Length"]
)
def test_a_larger_body_gets_413(chunks: tuple[bytes, ...], headers: dict[str, str]) -> None:
    found = _error(_reader(max_bytes=10), _request(*chunks, headers=headers))
    assert found == (413, "the body is larger than 10 bytes (--max-body-mb).")


@pytest.mark.parametrize("length", ["", "-5", "many", "1.5"])
def test_a_content_length_that_is_no_number_is_ignored(length: str) -> None:
    assert _run(lambda: _reader().read(_request(b"ab", headers={"content-length": length}))) == b"ab"


def test_a_client_that_disconnects_gets_400() -> None:
    assert _error(_reader(), _request(b"ab", disconnects=True)) == (400, "the client disconnected.")


SLOW = "the body arrived too slowly. The minimum rate after 5 s is 1000 bytes per second."


@pytest.mark.parametrize(
    ("steps", "error"),
    [
        ((4.9, b"a"), ""),
        ((5.1, b"a"), SLOW),
        ((4.0, b"a" * 1000, 1.9, b"b"), ""),
        ((4.0, b"a" * 1000, 2.1, b"b"), SLOW),
        ((1.0, b"a" * 2000, b"a" * 2000, 7.9, b"b"), ""),
        ((1.0, b"a" * 2000, b"a" * 2000, 8.1, b"b"), SLOW),
    ],
)
def test_a_body_has_5_seconds_and_one_for_each_1000_bytes(steps: tuple[_Step, ...], error: str) -> None:
    if error:
        assert _error(_reader(), _request(*steps)) == (408, error)
    else:
        assert _run(lambda: _reader().read(_request(*steps))).endswith(steps[-1])


def test_the_time_limit_of_a_body_does_not_depend_on_its_rate() -> None:
    steps = (1.0, b"a" * 9000, 4.9, b"b")
    assert _run(lambda: _reader(timeout_s=6).read(_request(*steps))).endswith(b"b")
    assert _error(_reader(timeout_s=6), _request(1.0, b"a" * 9000, 5.1, b"b")) == (408, "the body did not arrive within 6 s.")
    assert _error(_reader(timeout_s=2.5), _request(2.6, b"b")) == (408, "the body did not arrive within 2.5 s.")
    assert _run(lambda: _reader(timeout_s=2.5).read(_request(2.4, b"b"))) == b"b"


def test_the_time_starts_with_the_request() -> None:
    async def later() -> bytes:
        await asyncio.sleep(100)
        return await _reader().read(_request(4.0, b"a" * 1000, 1.9, b"b"))

    assert len(_run(later)) == 1001


def test_a_late_start_does_not_count_as_time_of_the_body() -> None:
    async def later() -> bytes:
        await asyncio.sleep(100)
        return await _reader().read(_request(5.1, b"a"))

    with pytest.raises(RequestError) as caught:
        _run(later)
    assert str(caught.value) == SLOW


OLDEST = "the arriving request bodies need too much memory, and this one is the oldest. Send the request again."


def test_the_oldest_body_gets_408_if_all_bodies_exceed_the_memory() -> None:
    async def work() -> list[Any]:
        reader = _reader(max_bytes=100, max_total_bytes=150)
        bodies = [_request(1.0, bytes(60), 3.0, b"x"), _request(1.0, bytes(50), 3.0, b"y"), _request(2.0, bytes(40), bytes(1), 1.0, b"z")]
        first = await asyncio.gather(*(reader.read(body) for body in bodies), return_exceptions=True)
        # The memory of the ended bodies is free again.
        again = [_request(1.0, bytes(75), 1.0), _request(1.0, bytes(75), 1.0)]
        return [*first, *await asyncio.gather(*(reader.read(body) for body in again), return_exceptions=True)]

    oldest, second, third, *again = _run(work)
    assert isinstance(oldest, RequestError) and (oldest.status, str(oldest)) == (408, OLDEST)
    assert (len(second), len(third)) == (51, 42) and [len(body) for body in again] == [75, 75]


def test_the_next_oldest_body_gets_408_if_the_memory_is_exceeded_again() -> None:
    async def work() -> list[Any]:
        reader = _reader(max_bytes=100, max_total_bytes=150)
        steps = ((1.0, 60), (1.0, 50), (2.0, 41), (3.0, 60))
        bodies = [reader.read(_request(start, bytes(size), 4.0 - start, b"x")) for start, size in steps]
        return list(await asyncio.gather(*bodies, return_exceptions=True))

    first, second, third, fourth = _run(work)
    assert str(first) == str(second) == OLDEST and (len(third), len(fourth)) == (42, 61)


def test_bodies_of_exactly_the_total_memory_are_read() -> None:
    async def work() -> list[bytes]:
        reader = _reader(max_bytes=100, max_total_bytes=150)
        return await asyncio.gather(*(reader.read(_request(1.0, bytes(75), 1.0)) for _ in range(2)))

    assert [len(body) for body in _run(work)] == [75, 75]


@pytest.mark.parametrize("earlier", [(10, 20, 30), (60, 50, 41)], ids=["read", "the oldest got 408"])
def test_ended_bodies_do_not_change_the_total_memory(earlier: tuple[int, ...]) -> None:
    async def work() -> list[Any]:
        reader = _reader(max_bytes=100, max_total_bytes=150)

        async def read(sizes: tuple[int, ...]) -> list[Any]:
            bodies = (reader.read(_request(1.0, bytes(size), 1.0)) for size in sizes)
            return list(await asyncio.gather(*bodies, return_exceptions=True))

        await read(earlier)
        return await read((75, 76))

    oldest, newest = _run(work)
    assert str(oldest) == OLDEST and len(newest) == 76


def test_a_failed_body_frees_its_memory() -> None:
    async def work() -> bytes:
        reader = _reader(max_bytes=100, max_total_bytes=100)
        for _ in range(3):
            with pytest.raises(RequestError, match="disconnected"):
                await reader.read(_request(bytes(90), disconnects=True))
        body: bytes = await reader.read(_request(bytes(100)))
        return body

    assert len(_run(work)) == 100


@pytest.mark.parametrize(
    ("header", "encoding"),
    [
        ({}, "identity"),
        ({"content-encoding": " GZip "}, "gzip"),
        ({"content-encoding": "deflate"}, "deflate"),
        ({"content-encoding": "identity"}, "identity"),
    ],
)
def test_content_encoding_is_lower_case_and_identity_by_default(header: dict[str, str], encoding: str) -> None:
    assert content_encoding(_request(headers=header)) == encoding


def test_an_unknown_content_encoding_gets_415() -> None:
    with pytest.raises(RequestError) as caught:
        content_encoding(_request(headers={"content-encoding": "br"}))
    assert caught.value.status == 415
    assert str(caught.value) == "the Content-Encoding is not supported. Use gzip, deflate, or no encoding."
