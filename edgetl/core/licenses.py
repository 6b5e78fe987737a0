"""Licenses of weights: freedom of use by the name of the license, and the most restrictive of several.

A name does not cover the images that the weights were trained on; the card of each backbone does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias

from edgetl.errors import LicenseError

Policy: TypeAlias = Literal["any", "commercial"]
Freedom: TypeAlias = Literal["permissive", "share-alike", "unknown", "non-commercial"]

# From the least to the most restrictive; an unknown license may forbid anything but is not known to.
ORDER: tuple[Freedom, ...] = ("permissive", "share-alike", "unknown", "non-commercial")

# SPDX names (spdx.org/licenses), and the names that model hubs use beside them.
_PERMISSIVE = ("apache-2.0", "mit", "bsd", "isc", "unlicense", "cc0", "cc-by-4.0", "cc-by-3.0", "zlib", "openrail++")
# Apple's sample code license, and the names by which timm calls it: use, change and redistribution, no patent grant.
_APPLE_SAMPLE = ("apple-ascl", "fastvit-license", "cvnets-license")
_SHARE_ALIKE = ("gpl", "lgpl", "agpl", "mpl", "cc-by-sa", "epl", "eupl")
_NON_COMMERCIAL = ("-nc", "non-commercial", "noncommercial", "research", "apple-amlr", "fair-", "llama", "swag")


def freedom(license: str | None) -> Freedom:
    """How free a license is, by its name."""
    name = (license or "").strip().lower()
    if any(mark in name for mark in _NON_COMMERCIAL):
        return "non-commercial"
    if name.startswith(_SHARE_ALIKE):
        return "share-alike"
    return "permissive" if name.startswith(_PERMISSIVE) or name in _APPLE_SAMPLE else "unknown"


def most_restrictive(licenses: Iterable[str | None]) -> str | None:
    """The license that binds what was made from several; the first of equals."""
    return max(licenses, key=lambda license: ORDER.index(freedom(license)), default=None)


def check_policy(license: str | None, policy: Policy, *, name: str) -> None:
    """Refuse weights that ``policy`` does not allow.

    Raises:
        LicenseError: ``commercial``, and the license forbids commercial use or is not known.
    """
    if policy == "any":
        return
    match freedom(license):
        case "non-commercial":
            raise LicenseError(f"the weights of {name} are under {license}, which forbids commercial use. Choose another: `edgetl models`.")
        case "unknown":
            stated = f"under {license!r}, which is not on edgetl's list" if license else "without a stated license"
            raise LicenseError(f"the weights of {name} are {stated}. Read their card; if they may be used, add --license NAME.")
        case _:
            return
