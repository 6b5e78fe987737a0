"""Licenses of weights: permissions by the name of the license, and the most restrictive of several licenses.

A license name does not cover the training images of the weights. The model card of each backbone describes them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias

from edgetl.errors import LicenseError

Policy: TypeAlias = Literal["any", "commercial"]
Freedom: TypeAlias = Literal["permissive", "share-alike", "unknown", "non-commercial"]

# From the least to the most restrictive. An unknown license may forbid commercial use.
ORDER: tuple[Freedom, ...] = ("permissive", "share-alike", "unknown", "non-commercial")

# SPDX names (spdx.org/licenses), and names of model hubs.
_PERMISSIVE = ("apache-2.0", "mit", "bsd", "isc", "unlicense", "cc0", "cc-by-4.0", "cc-by-3.0", "zlib", "openrail++")
# Apple's sample code license and its names in timm: permits use, changes and redistribution, grants no patents.
_APPLE_SAMPLE = ("apple-ascl", "fastvit-license", "cvnets-license")
_SHARE_ALIKE = ("gpl", "lgpl", "agpl", "mpl", "cc-by-sa", "epl", "eupl")
_NON_COMMERCIAL = ("-nc", "non-commercial", "noncommercial", "research", "apple-amlr", "fair-", "llama", "swag")


def freedom(license: str | None) -> Freedom:
    """Classify a license by its name: permissive, share-alike, unknown or non-commercial."""
    name = (license or "").strip().lower()
    if any(mark in name for mark in _NON_COMMERCIAL):
        return "non-commercial"
    if name.startswith(_SHARE_ALIKE):
        return "share-alike"
    return "permissive" if name.startswith(_PERMISSIVE) or name in _APPLE_SAMPLE else "unknown"


def most_restrictive(licenses: Iterable[str | None]) -> str | None:
    """Return the most restrictive license, the first among equals. It applies to a model made from all of them."""
    return max(licenses, key=lambda license: ORDER.index(freedom(license)), default=None)


def check_policy(license: str | None, policy: Policy, *, name: str) -> None:
    """Check the license of weights against ``--license-policy``.

    Raises:
        LicenseError: the policy is ``commercial``, and the license forbids commercial use or is unknown.
    """
    if policy == "any":
        return
    match freedom(license):
        case "non-commercial":
            raise LicenseError(
                f"the weights of {name} are under {license}, which forbids commercial use. Choose other weights: `edgetl models`."
            )
        case "unknown":
            stated = f"under {license!r}, which is not on edgetl's list" if license else "without a stated license"
            raise LicenseError(
                f"the weights of {name} are {stated}. Read their model card. If commercial use is allowed, add --license NAME."
            )
        case _:
            return
