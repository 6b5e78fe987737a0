"""Validation of labels and escaping of names."""

from __future__ import annotations

import json

import pytest

from edgetl.core.files.names import label_problem, printable


@pytest.mark.parametrize("label", ["cat", "hot dog", "café\u00a0noir", "猫\u3000種", "می\u200cخواهم", "👩\u200d🔬", " a ", "a/b", "<&>"])
def test_labels_may_have_all_kinds_of_spaces_and_joiners(label: str) -> None:
    assert label_problem(label) is None and printable(label) == label


@pytest.mark.parametrize(
    ("label", "problem"),
    [
        ("", "is empty"),
        (" \u3000", "is empty"),
        ("a\tb", "has a tab"),
        ("a\r\n", "has a line break"),
        ("\u2028a", r"has a line break (\u2028)"),
        ("a\x00", r"has a control character (\x00)"),
        ("a\u202eb", r"has an invisible character (\u202e)"),
        ("\ufeffa", r"has an invisible character (\ufeff)"),
        ("caf\udce9", r"has a byte that is not UTF-8 (\xe9)"),
        ("\ufffe", r"has a character without meaning (\ufffe)"),
    ],
)
def test_label_problem_describes_the_invalid_character(label: str, problem: str) -> None:
    assert label_problem(label) == problem


@pytest.mark.parametrize(("name", "shown"), [("a\nb", r"a\nb"), ("verre_cass\udce9.jpg", r"verre_cass\xe9.jpg"), ("\ud800", r"\ud800")])
def test_printable_escapes_names_for_json_and_utf8(name: str, shown: str) -> None:
    assert printable(name) == shown
    json.dumps(shown, ensure_ascii=False).encode()
