"""Addresses of sinks: ``jsonl``, ``csv:FILE``, ``mqtt://HOST/TOPIC``, ``https://HOST/PATH``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast
from urllib.parse import SplitResult, urlsplit

from edgetl.errors import ConfigError


@dataclass(frozen=True)
class LineAddress:
    """Lines in a file, or on standard output if ``path`` is none."""

    form: Literal["jsonl", "csv"]
    path: Path | None


@dataclass(frozen=True)
class NetworkAddress:
    """Receiver on the network.

    Attributes:
        kind: protocol.
        url: address of the receiver.
    """

    kind: Literal["mqtt", "http"]
    url: SplitResult

    @property
    def name(self) -> str:
        """Address without user name."""
        return self.url._replace(netloc=self.url.netloc.rpartition("@")[2]).geturl()


def parse_sink(text: str) -> LineAddress | NetworkAddress:
    """Parse a value of ``--sink``.

    Raises:
        ConfigError: it is not the address of a sink, or it contains a password.
    """
    form, colon, rest = text.partition(":")
    if form in ("jsonl", "csv") and (rest or not colon):
        return LineAddress(cast(Literal["jsonl", "csv"], form), Path(rest) if rest else None)
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError as error:
        raise ConfigError(f"--sink {text} is not a URL: {error}.") from error
    if url.scheme not in ("mqtt", "mqtts", "http", "https"):
        raise ConfigError(f"--sink {text} is not known. Set jsonl, csv, jsonl:FILE, csv:FILE, mqtt://HOST/TOPIC or http://HOST/PATH.")
    if not url.hostname or port == 0:
        raise ConfigError(f"--sink {text} has no valid host and port.")
    if url.password is not None:
        raise ConfigError(
            f"--sink {url.scheme}://{url.username}:…@{url.hostname}: other users of the host can see a password here. Use --secret-file."
        )
    if url.scheme.startswith("mqtt"):
        topic = url.path.removeprefix("/")
        if not topic or set(text) & {"+", "#", "?"}:
            raise ConfigError(f"--sink {text} has no valid topic. Add one without +, # and ?, such as mqtt://{url.netloc}/cameras/1.")
        return NetworkAddress("mqtt", url)
    return NetworkAddress("http", url)
