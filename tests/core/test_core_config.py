"""Strict JSON parsing and validation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator

from edgetl.core.config import MAX_JSON_BYTES, StrictModel, parse_json, read_json
from edgetl.errors import BundleError, ConfigError, RunError


class Inner(StrictModel):
    level: int = 0


class Record(StrictModel):
    schema_version: Literal[1] = 1
    count: int = 0
    share: float = 0.0
    label: str = ""
    flag: bool = False
    names: tuple[str, ...] = ()
    inner: Inner = Inner()


def parse(data: bytes | str) -> Record:
    return parse_json(data.encode() if isinstance(data, str) else data, Record, ConfigError, name="record.json")


RECORDS = st.builds(
    Record,
    count=st.integers(-(2**60), 2**60),
    share=st.floats(allow_nan=False, allow_infinity=False),
    label=st.text(),
    flag=st.booleans(),
    names=st.lists(st.text(), max_size=4).map(tuple),
    inner=st.builds(Inner, level=st.integers(-5, 5)),
)


@given(RECORDS)
@settings(deadline=None, max_examples=60)
def test_a_model_is_unchanged_after_writing_and_parsing(record: Record) -> None:
    assert parse(record.model_dump_json()) == record


@given(RECORDS)
@settings(deadline=None, max_examples=60)
def test_the_order_and_spacing_of_json_do_not_matter(record: Record) -> None:
    assert parse(json.dumps(record.model_dump(), indent=3, sort_keys=True)) == record


FRAGMENTS = [
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    '"count"',
    '"names"',
    '"',
    "1",
    "-",
    "1e999",
    "null",
    "NaN",
    "\\u0000",
    "\\ud800",
    " ",
    "é",
    "\0",
]


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join))
@settings(deadline=None, max_examples=60)
def test_arbitrary_text_is_parsed_or_a_config_error(text: str) -> None:
    try:
        outcome = type(parse(text)).__name__
    except ConfigError as error:
        outcome = str(error)
    assert outcome == "Record" or outcome.startswith("record.json ")


@pytest.mark.parametrize(
    "text",
    [
        '{"count": 1, "count": 2}',
        '{"count": 1, "co\\u0075nt": 2}',
        '{"inner": {"level": 1, "level": 1}}',
    ],
    ids=["plain", "escaped", "nested"],
)
def test_a_duplicate_key_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match=r"record\.json is not valid JSON: an object has a duplicate key"):
        parse(text)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_nan_and_infinity_are_an_error(number: str) -> None:
    with pytest.raises(ConfigError, match=f"the number {number} is not allowed"):
        parse(f'{{"share": {number}}}')


@pytest.mark.parametrize("number", ["1e400", "-1e400"])
@pytest.mark.parametrize("field", ["share", "count"])
def test_the_error_for_a_too_large_number_shows_its_field(field: str, number: str) -> None:
    with pytest.raises(ConfigError, match=f"does not fit its schema: {field}"):
        parse(f'{{"{field}": {number}}}')


def test_an_integer_of_5000_digits_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"record\.json is not valid JSON"):
        parse(f'{{"count": {"9" * 5000}}}')


@pytest.mark.parametrize("depth", [500, 10_000, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"inner":', "}")], ids=["arrays", "objects"])
def test_deep_nesting_is_an_error(opening: str, closing: str, depth: int) -> None:
    with pytest.raises(ConfigError, match=r"record\.json (is not valid JSON|does not fit its schema)"):
        parse(opening * depth + "1" + closing * depth)


@pytest.mark.parametrize(
    "data",
    [
        b'\xef\xbb\xbf{"count": 1}',
        '{"count": 1}'.encode("utf-16"),
        '{"count": 1}'.encode("utf-16-le"),
        '{"label": "é"}'.encode("latin-1"),
        b'{"label": "\xed\xa0\x80"}',
    ],
    ids=["BOM", "UTF-16", "UTF-16 without BOM", "Latin-1", "surrogate in bytes"],
)
def test_another_encoding_than_utf8_is_an_error(data: bytes) -> None:
    with pytest.raises(ConfigError, match=r"record\.json is not valid JSON"):
        parse(data)


def test_an_escaped_lone_surrogate_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"record\.json .*(valid JSON|Invalid JSON)"):
        parse('{"label": "\\ud800"}')


@pytest.mark.parametrize("text", ["", "{", "{'count': 1}", '{"count": 1,}', '{"count": 1} x', "// no\n{}", '{"count": 01}'])
def test_invalid_json_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match=r"record\.json is not valid JSON"):
        parse(text)


@pytest.mark.parametrize("text", ["null", "[]", "1", '"{}"', "true"])
def test_json_without_an_object_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match=r"record\.json does not fit its schema"):
        parse(text)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("count", '"12"'),
        ("count", "1.5"),
        ("count", "1.0"),
        ("count", "true"),
        ("count", "null"),
        ("share", '"0.5"'),
        ("share", "false"),
        ("label", "5"),
        ("flag", "1"),
        ("flag", '"yes"'),
        ("names", '"abc"'),
        ("names", "[1]"),
        ("inner", '{"level": "1"}'),
        ("schema_version", '"1"'),
        ("schema_version", "0"),
        ("schema_version", "null"),
    ],
)
def test_the_error_for_a_value_of_another_type_shows_its_field(field: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"record\.json does not fit its schema: {field}"):
        parse(f'{{"{field}": {value}}}')


def test_an_integer_is_accepted_for_a_float() -> None:
    assert parse('{"share": 1}').share == 1.0


def test_the_error_for_an_unknown_field_shows_its_name() -> None:
    with pytest.raises(ConfigError, match=r"record\.json does not fit its schema: inner\.color"):
        parse('{"inner": {"color": 1}}')


def test_several_problems_are_reported_together() -> None:
    with pytest.raises(ConfigError, match=r"count: .*; share: .*; label: .*\(and 2 more\)"):
        parse('{"count": "1", "share": "1", "label": 1, "flag": 1, "color": 1}')


def test_the_error_for_a_newer_schema_version_is_to_upgrade() -> None:
    with pytest.raises(ConfigError, match=r"record\.json has schema version 2\. This version of edgetl reads up to 1\. Upgrade edgetl"):
        parse('{"schema_version": 2, "new_field": {}, "count": "x"}')


def test_the_error_has_the_given_class() -> None:
    with pytest.raises(RunError, match=r"run\.json is not valid JSON"):
        parse_json(b"{", Record, RunError, name="run.json")


def test_models_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse("{}").count = 3


def test_read_json_reads_a_file(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text('{"count": 3}')
    assert read_json(tmp_path / "record.json", Record, BundleError).count == 3


def test_the_error_for_a_missing_file_shows_its_path(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"cannot read .*/record\.json: No such file"):
        read_json(tmp_path / "record.json", Record, BundleError)


def test_the_error_for_a_folder_instead_of_a_file_shows_its_path(tmp_path: Path) -> None:
    (tmp_path / "record.json").mkdir()
    with pytest.raises(BundleError, match=r"cannot read .*/record\.json: not a regular file"):
        read_json(tmp_path / "record.json", Record, BundleError)


def test_a_file_of_the_largest_size_is_read(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_bytes(b"{}".ljust(MAX_JSON_BYTES))
    assert read_json(tmp_path / "record.json", Record, BundleError) == Record()


def test_a_file_above_the_largest_size_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_bytes(b"{}".ljust(MAX_JSON_BYTES + 1))
    with pytest.raises(BundleError, match=r"record\.json has more than 1000000 bytes\. It is not a file that edgetl wrote"):
        read_json(tmp_path / "record.json", Record, BundleError)


class Even(StrictModel):
    count: Annotated[int, AfterValidator(lambda count: count if count % 2 == 0 else _refuse(count))]


def _refuse(count: int) -> int:
    raise ValueError(f"{count} is odd")


def test_error_of_a_validator_is_shown_without_the_prefix_of_pydantic() -> None:
    with pytest.raises(ConfigError, match=r"count: 3 is odd\.$"):
        parse_json(b'{"count": 3}', Even, ConfigError, name="record.json")
