"""TLS certificate check before the server starts. It rejects a certificate that no client would accept."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from edgetl.core.files.regular import open_plain
from edgetl.errors import ConfigError

_WARNING_PERIOD = timedelta(days=14)


def check_certificate(certificate: Path, key: Path, *, now: datetime | None = None) -> str:
    """Check the server's certificate and its key.

    Returns:
        A warning if the certificate expires within two weeks, otherwise an empty string.

    Raises:
        ConfigError: a file cannot be read, the key does not match, or the certificate is expired or not valid yet.
    """
    try:
        with open_plain(certificate) as file:
            first = x509.load_pem_x509_certificates(file.read())[0]
    except OSError as error:
        raise ConfigError(f"cannot read the certificate {certificate}: {error.strerror}.") from error
    except ValueError as error:
        raise ConfigError(f"{certificate} contains no certificate in PEM format.") from error
    moment = now or datetime.now(UTC)
    if moment >= first.not_valid_after_utc:
        raise ConfigError(f"the certificate {certificate} expired on {first.not_valid_after_utc:%Y-%m-%d}. Renew it and start again.")
    if moment < first.not_valid_before_utc:
        raise ConfigError(
            f"the certificate {certificate} is not valid before {first.not_valid_before_utc:%Y-%m-%d %H:%M} UTC. "
            "Check the clock of this host."
        )
    try:
        open_plain(key).close()  # OpenSSL would block on a FIFO
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key)
    except OSError as error:
        # ssl.SSLError is an OSError. Its reason is a constant such as KEY_VALUES_MISMATCH.
        reason = getattr(error, "reason", None) or error.strerror
        raise ConfigError(f"the key {key} and the certificate {certificate} cannot be used together: {reason}.") from error
    left = first.not_valid_after_utc - moment
    return f"the certificate {certificate} expires in {left.days} day(s)." if left < _WARNING_PERIOD else ""
