"""Sources of the runner: a folder, standard input, a video file and a live stream."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.core.images.decode import MAX_FILE_BYTES
from edgetl.device.runner.sources import folder
from edgetl.device.runner.sources.folder import FolderSource, Mode
from edgetl.device.runner.sources.frame import Frame, Frames
from edgetl.device.runner.sources.standard_input import LENGTH, Form, StandardInput
from edgetl.device.runner.waiting import Backoff, Stop
from edgetl.errors import ConfigError, DataError, ImageError


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "POLL_S", 0.01)


@pytest.fixture
def stop() -> Iterator[Stop]:
    """Stop request that nobody sets."""
    stop = Stop()
    yield stop
    stop.close()


def source(path: Path, stop: Stop, mode: Mode = "once", *, processed: str = "keep", settle_s: float = 0.0) -> FolderSource:
    return FolderSource(path, mode=mode, settle_s=settle_s, processed=processed, stop=stop)


def following(frames: Frames, count: int) -> list[str]:
    """Return the names of the next ``count`` frames."""
    names: list[str] = []
    while len(names) < count:
        if (frame := next(frames)) is not None:
            names.append(Path(frame.name).name)
    return names


def idle(frames: Frames, rounds: int = 5) -> None:
    """Check that no frame arrives for some rounds."""
    assert [next(frames) for _ in range(rounds)] == [None] * rounds


def test_folder_yields_each_image_once_in_order(tmp_path: Path, stop: Stop) -> None:
    for name in ("b.jpg", "a/z.PNG", "a/.hidden.jpg", ".trash/x.jpg", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert [frame.image for frame in source(tmp_path, stop).frames() if frame] == [tmp_path / "b.jpg", tmp_path / "a/z.PNG"]


def test_folder_without_images_is_an_error(tmp_path: Path, stop: Stop) -> None:
    with pytest.raises(DataError, match=r"contains no image\. Check the folder, or wait for images with --follow"):
        next(source(tmp_path, stop).frames())
    with pytest.raises(DataError, match="cannot be listed: No such file or directory"):
        next(source(tmp_path / "missing", stop).frames())


def test_looped_folder_starts_again_and_counts_missing_files(tmp_path: Path, stop: Stop) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"x")
    looped = source(tmp_path, stop, "loop")
    frames = looped.frames()
    assert following(frames, 3) == ["a.jpg", "b.jpg", "a.jpg"]
    (tmp_path / "b.jpg").unlink()
    assert following(frames, 1) == ["a.jpg"] and looped.missing == 1


def test_followed_folder_claims_a_file_when_it_stops_changing(tmp_path: Path, stop: Stop) -> None:
    frames = source(tmp_path, stop, "follow").frames()
    idle(frames)
    (tmp_path / "a.jpg").write_bytes(b"1")
    assert next(frames) is None, "the first listing only remembers the file"
    for size in range(2, 6):
        (tmp_path / "a.jpg").write_bytes(bytes(size))
        assert next(frames) is None, "the writer is not finished"
    assert following(frames, 1) == ["a.jpg"]
    idle(frames)


def test_followed_file_that_changes_later_is_claimed_again(tmp_path: Path, stop: Stop) -> None:
    frames = source(tmp_path, stop, "follow").frames()
    (tmp_path / "a.jpg").write_bytes(b"1")
    assert following(frames, 1) == ["a.jpg"]
    (tmp_path / "a.jpg").write_bytes(b"22")
    assert following(frames, 1) == ["a.jpg"]


def test_followed_folder_may_disappear_and_return(tmp_path: Path, stop: Stop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backoff, "next", lambda _: 0.01)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jpg").write_bytes(b"1")
    followed = source(tmp_path / "in", stop, "follow")
    frames = followed.frames()
    assert following(frames, 1) == ["a.jpg"]
    (tmp_path / "in").rename(tmp_path / "away")
    idle(frames)
    assert "cannot be listed: No such file" in followed.problem
    (tmp_path / "away/b.jpg").write_bytes(b"1")
    (tmp_path / "away").rename(tmp_path / "in")
    assert following(frames, 1) == ["b.jpg"], "a.jpg was predicted before"
    assert followed.problem == ""


def test_processed_files_are_deleted_or_moved_without_replacing_others(tmp_path: Path, stop: Stop) -> None:
    incoming, done = tmp_path / "in", tmp_path / "in/done"
    done.mkdir(parents=True)
    for number in range(2):
        (incoming / "a.jpg").write_bytes(bytes([number]))
        moving = source(incoming, stop, processed=str(done))
        for frame in moving.frames():
            assert frame is not None
            moving.finish(frame)
    assert sorted(path.name for path in done.iterdir()) == ["a-1.jpg", "a.jpg"]
    assert (done / "a.jpg").read_bytes() == b"\0"
    deleting = source(done, stop, processed="delete")
    for frame in list(deleting.frames()):
        assert frame is not None
        deleting.finish(frame)
    assert list(done.iterdir()) == []


def test_folder_for_processed_files_must_exist(tmp_path: Path, stop: Stop) -> None:
    (tmp_path / "file").touch()
    for target, reason in (
        (tmp_path / "missing", "No such file"),
        (tmp_path / "file", "is not a folder"),
        (Path("/proc"), "another file system"),
    ):
        with pytest.raises(ConfigError, match=reason):
            source(tmp_path, stop, processed=str(target))


def test_stop_ends_a_waiting_source(tmp_path: Path, stop: Stop) -> None:
    frames = source(tmp_path, stop, "follow").frames()
    idle(frames)
    stop.request()
    assert list(frames) in ([], [None])


def piped(data: bytes, form: Form, stop: Stop, *, piece: int = 1 << 30) -> list[Frame]:
    """Return the frames of ``data``, which arrives in pieces on a pipe."""
    reader, writer = os.pipe()

    def write() -> None:
        with open(writer, "wb", buffering=0) as file:
            for start in range(0, len(data), piece):
                file.write(data[start : start + piece])

    thread = threading.Thread(target=write)
    thread.start()
    try:
        return [frame for frame in StandardInput(reader, form=form, stop=stop).frames() if frame is not None]
    finally:
        os.close(reader)
        thread.join()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=8), st.integers(1, 400))
def test_standard_input_yields_the_images_that_were_sent(images: list[bytes], piece: int) -> None:
    stop = Stop()
    data = b"".join(LENGTH.pack(len(image)) + image for image in images)
    assert [frame.image for frame in piped(data, "images", stop, piece=piece)] == images
    stop.close()


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.binary(min_size=1, max_size=60).map(lambda name: name.replace(b"\n", b"_").replace(b"\r", b"_")), max_size=8),
    st.integers(1, 99),
)
def test_standard_input_yields_the_names_that_were_sent(names: list[bytes], piece: int) -> None:
    stop = Stop()
    for data in (b"\n".join(names), b"".join(name + b"\r\n" for name in names)):
        assert [frame.image for frame in piped(data, "names", stop, piece=piece)] == [Path(os.fsdecode(name)) for name in names]
    stop.close()


def test_image_that_is_cut_off_is_an_error_of_this_image(stop: Stop) -> None:
    first, second = piped(LENGTH.pack(3) + b"abc" + LENGTH.pack(9) + b"abc", "images", stop)
    assert first.image == b"abc"
    assert isinstance(second.image, ImageError) and "ended after 7 of 13 bytes of image 2" in str(second.image)
    (third,) = piped(b"\1\0", "images", stop)
    assert isinstance(third.image, ImageError)


def test_wrong_length_ends_the_source(stop: Stop) -> None:
    with pytest.raises(DataError, match=r"image 1 of standard input has a length of 542,393,671 bytes. The limit is"):
        piped(b"GET /" + bytes(20), "images", stop)
    with pytest.raises(DataError, match="image 1"):
        piped(LENGTH.pack(MAX_FILE_BYTES + 1), "images", stop)
    with pytest.raises(DataError, match="line 1 of standard input has more than 4096 bytes"):
        piped(bytes([65]) * 5000, "names", stop)


def test_backoff_doubles_within_its_limits() -> None:
    backoff = Backoff(1.0, 5.0)
    waits = [backoff.next() for _ in range(6)]
    for wait, limit in zip(waits, (1, 2, 4, 5, 5, 5), strict=True):
        assert limit / 2 <= wait <= limit
    backoff.reset()
    assert backoff.next() <= 1


def write_video(path: Path, count: int) -> Path:
    """Write a video whose frames are red, then darker and darker."""
    cv2 = pytest.importorskip("cv2")
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for number in range(count):
        writer.write(np.full((48, 64, 3), (0, 0, 250 - 20 * number), np.uint8))  # BGR
    writer.release()
    return path


def test_video_file_yields_all_frames_in_rgb(tmp_path: Path, stop: Stop) -> None:
    path = write_video(tmp_path / "clip.avi", 5)
    from edgetl.device.runner.sources.video import VideoFile

    frames = [frame for frame in VideoFile(path, loop=False, stop=stop).frames() if frame is not None]
    assert [frame.name for frame in frames] == [f"{path}#{number}" for number in range(1, 6)]
    for number, frame in enumerate(frames):
        assert isinstance(frame.image, np.ndarray) and frame.image.shape == (48, 64, 3)
        assert np.abs(frame.image.mean((0, 1)) - (250 - 20 * number, 0, 0)).max() < 6
    looped = VideoFile(path, loop=True, stop=stop).frames()
    assert [next(looped).name[-2:] for _ in range(7)] == ["#1", "#2", "#3", "#4", "#5", "#1", "#2"]  # type: ignore[union-attr]


def test_file_that_is_no_video_is_an_error(tmp_path: Path, stop: Stop) -> None:
    pytest.importorskip("cv2")
    from edgetl.device.runner.sources.video import VideoFile

    (tmp_path / "clip.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match="is not a video that OpenCV can read"):
        next(VideoFile(tmp_path / "clip.mp4", loop=False, stop=stop).frames())


@contextmanager
def camera(jpeg: bytes, port: int = 0) -> Iterator[int]:
    """Serve one image again and again as a multipart stream, as network cameras do. Yield the port."""

    class Stream(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
            self.end_headers()
            part = b"--next\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n" % (len(jpeg), jpeg)
            try:
                while not ended.wait(0.005):
                    self.wfile.write(part)
            except OSError:
                pass

        def log_message(self, *_: object) -> None: ...

    ended = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", port), Stream)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        ended.set()
        server.shutdown()
        server.server_close()
        thread.join()


def test_live_stream_drops_frames_and_returns_after_a_disconnection(stop: Stop, monkeypatch: pytest.MonkeyPatch) -> None:
    cv2 = pytest.importorskip("cv2")
    from edgetl.device.runner.sources.video import LiveVideo

    monkeypatch.setattr(Backoff, "next", lambda _: 0.02)
    encoded = cv2.imencode(".jpg", np.full((48, 64, 3), (0, 0, 200), np.uint8))[1].tobytes()

    def numbers(frames: Frames, source: LiveVideo, *, dropped: int) -> list[int]:
        found: list[int] = []
        while len(found) < 3 or source.dropped < dropped:
            if (frame := next(frames)) is not None:
                assert isinstance(frame.image, np.ndarray) and frame.image[20, 20, 0] > 180 and frame.name.startswith("http://127.0.0.1")
                found.append(int(frame.name.rpartition("#")[2]))
                stop.wait(0.05)  # slower than the stream
        return found

    with camera(encoded) as port:
        live = LiveVideo(f"http://someone:secret@127.0.0.1:{port}/", stop=stop)
        frames = live.frames()
        seen = numbers(frames, live, dropped=5)
    assert seen == sorted(seen) and seen[-1] >= len(seen) + 5
    assert live.name == f"http://127.0.0.1:{port}/", "records contain no password"
    while not live.problem:
        next(frames)
    assert "gives no images" in live.problem
    with camera(encoded, port):
        assert numbers(frames, live, dropped=live.dropped)[0] > seen[-1]
        assert live.problem == ""
        frames.close()
