from __future__ import annotations

import pytest

from edgetl.core.licenses import check_policy, freedom, most_restrictive
from edgetl.errors import LicenseError


@pytest.mark.parametrize(
    ("license", "expected"),
    [
        ("apache-2.0", "permissive"),
        ("MIT", "permissive"),
        ("bsd-3-clause", "permissive"),
        ("cc-by-4.0", "permissive"),
        ("agpl-3.0", "share-alike"),
        ("cc-by-sa-4.0", "share-alike"),
        ("cc-by-nc-4.0", "non-commercial"),
        ("cc-by-nc-sa-4.0", "non-commercial"),
        ("fair-noncommercial-research", "non-commercial"),
        ("apple-amlr", "non-commercial"),
        ("other", "unknown"),
        (None, "unknown"),
        ("", "unknown"),
    ],
)
def test_freedom_classifies_license_names(license: str | None, expected: str) -> None:
    assert freedom(license) == expected


def test_most_restrictive_returns_the_strictest_license() -> None:
    assert most_restrictive(["apache-2.0", "cc-by-nc-4.0", None, "mit"]) == "cc-by-nc-4.0"
    assert most_restrictive(["apache-2.0", None, "gpl-3.0"]) is None
    assert most_restrictive(["apache-2.0", "gpl-3.0", "mit"]) == "gpl-3.0"
    assert most_restrictive(["apache-2.0", "mit"]) == "apache-2.0"
    assert most_restrictive([]) is None


def test_the_commercial_policy_rejects_non_commercial_and_unknown_licenses() -> None:
    check_policy("cc-by-nc-4.0", "any", name="x")
    check_policy("apache-2.0", "commercial", name="x")
    with pytest.raises(LicenseError, match=r"weights of x are under cc-by-nc-4\.0, which forbids commercial use"):
        check_policy("cc-by-nc-4.0", "commercial", name="x")
    with pytest.raises(LicenseError, match=r"without a stated license\. Read their model card.*--license NAME"):
        check_policy(None, "commercial", name="x")
    with pytest.raises(LicenseError, match="'house-license', which is not on edgetl's list"):
        check_policy("house-license", "commercial", name="x")
