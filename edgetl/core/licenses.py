"""What a licence of weights allows, as far as its name says; and which of several is the most restrictive.

A name says nothing about the images that the weights were trained on; the card of each backbone does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias

from edgetl.errors import LicenceError

Policy: TypeAlias = Literal["any", "commercial"]
Freedom: TypeAlias = Literal["permissive", "share-alike", "unknown", "non-commercial"]

# From the least to the most restrictive; an unknown licence may forbid anything but is not known to.
ORDER: tuple[Freedom, ...] = ("permissive", "share-alike", "unknown", "non-commercial")

# SPDX names (spdx.org/licenses), and the names that model hubs use beside them.
_PERMISSIVE = ("apache-2.0", "mit", "bsd", "isc", "unlicense", "cc0", "cc-by-4.0", "cc-by-3.0", "zlib", "openrail++")
# Apple's sample code licence, and the names by which timm calls it: use, change and redistribution, no patent grant.
_APPLE_SAMPLE = ("apple-ascl", "fastvit-license", "cvnets-license")
_SHARE_ALIKE = ("gpl", "lgpl", "agpl", "mpl", "cc-by-sa", "epl", "eupl")
_NON_COMMERCIAL = ("-nc", "non-commercial", "noncommercial", "research", "apple-amlr", "fair-", "llama", "swag")


def freedom(licence: str | None) -> Freedom:
    """How free a licence is, by its name."""
    name = (licence or "").strip().lower()
    if any(mark in name for mark in _NON_COMMERCIAL):
        return "non-commercial"
    if name.startswith(_SHARE_ALIKE):
        return "share-alike"
    return "permissive" if name.startswith(_PERMISSIVE) or name in _APPLE_SAMPLE else "unknown"


def most_restrictive(licences: Iterable[str | None]) -> str | None:
    """The licence that binds what was made from several; the first of equals."""
    return max(licences, key=lambda licence: ORDER.index(freedom(licence)), default=None)


def check_policy(licence: str | None, policy: Policy, *, name: str) -> None:
    """Refuse weights that ``policy`` does not allow.

    Raises:
        LicenceError: ``commercial``, and the licence forbids commercial use or is not known.
    """
    if policy == "any":
        return
    match freedom(licence):
        case "non-commercial":
            raise LicenceError(f"the weights of {name} are under {licence}, which forbids commercial use. Choose another: `edgetl models`.")
        case "unknown":
            said = f"under {licence!r}, which edgetl does not know" if licence else "without a stated licence"
            raise LicenceError(f"the weights of {name} are {said}. Read their card; if they may be used, say so with --licence NAME.")
        case _:
            return
