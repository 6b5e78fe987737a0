"""The server's certificate: looked at before anything listens, so that a device does not start with one that no client accepts."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from edgetl.core.files.regular import open_plain
from edgetl.errors import ConfigError

_SOON = timedelta(days=14)


def check_certificate(certificate: Path, key: Path, *, now: datetime | None = None) -> str:
    """Refuse a certificate that clients would refuse.

    Returns:
        a warning, where it ends within two weeks; else an empty text.

    Raises:
        ConfigError: a file cannot be read, they do not belong together, or the certificate is not valid now.
    """
    try:
        with open_plain(certificate) as file:
            first = x509.load_pem_x509_certificates(file.read())[0]
    except OSError as error:
        raise ConfigError(f"cannot read the certificate {certificate}: {error.strerror}.") from error
    except ValueError as error:
        raise ConfigError(f"{certificate} holds no certificate in PEM form.") from error
    moment = now or datetime.now(UTC)
    if moment >= first.not_valid_after_utc:
        raise ConfigError(f"the certificate {certificate} expired on {first.not_valid_after_utc:%Y-%m-%d}. Renew it, and start again.")
    if moment < first.not_valid_before_utc:
        raise ConfigError(
            f"the certificate {certificate} is valid from {first.not_valid_before_utc:%Y-%m-%d %H:%M} UTC. Is the clock right?"
        )
    try:
        open_plain(key).close()  # OpenSSL opens a FIFO too, and waits for its other end
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key)
    except OSError as error:
        # ssl.SSLError is one, and says KEY_VALUES_MISMATCH or the like.
        reason = getattr(error, "reason", None) or error.strerror
        raise ConfigError(f"the key {key} and the certificate {certificate} cannot be used together: {reason}.") from error
    left = first.not_valid_after_utc - moment
    return f"the certificate {certificate} expires in {left.days} day(s)." if left < _SOON else ""
