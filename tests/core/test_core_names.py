"""Names as text: what a label may hold, and how other names are escaped."""

from __future__ import annotations

import json

import pytest

from edgetl.core.files.names import label_problem, printable


@pytest.mark.parametrize("label", ["cat", "hot dog", "café\u00a0noir", "猫\u3000種", "می\u200cخواهم", "👩\u200d🔬", " a ", "a/b", "<&>"])
def test_labels_with_spaces_of_all_kinds_and_joined_letters_are_allowed(label: str) -> None:
    assert label_problem(label) is None and printable(label) == label


@pytest.mark.parametrize(
    ("label", "problem"),
    [
        ("", "is empty"), (" \u3000", "is empty"), ("a\tb", "holds a tab"), ("a\r\n", "holds a line break"),
        ("\u2028a", r"holds a line break (\u2028)"),
        ("a\x00", r"holds a control character (\x00)"), ("a\u202eb", r"holds an invisible character (\u202e)"),
        ("\ufeffa", r"holds an invisible character (\ufeff)"), ("caf\udce9", r"holds a byte that is not UTF-8 (\xe9)"),
        ("\ufffe", r"holds a character without meaning (\ufffe)"),
    ],
)  # fmt: skip
def test_a_label_that_a_format_cannot_hold_is_named_with_its_character(label: str, problem: str) -> None:
    assert label_problem(label) == problem


@pytest.mark.parametrize(("name", "shown"), [("a\nb", r"a\nb"), ("verre_cass\udce9.jpg", r"verre_cass\xe9.jpg"), ("\ud800", r"\ud800")])
def test_other_names_are_escaped_so_that_json_and_utf_8_hold_them(name: str, shown: str) -> None:
    assert printable(name) == shown
    json.dumps(shown, ensure_ascii=False).encode()
