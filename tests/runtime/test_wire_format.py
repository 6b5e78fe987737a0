"""Strict parser of the protocol-buffer wire format, compared with bytes written by hand (protobuf.dev/programming-guides/encoding)."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from edgetl.runtime.wire_format import Message, WireFormatError, count, read_message, schema

FIELDS = schema(
    "1 id number, 2 sizes number*, 3 name text, 4 names text*, 5 part bytes, 6 parts bytes*, 7 f float, 8 fs float*, 9 d double, "
    "16 ds double*"
)


def _varint(value: int) -> bytes:
    """Encode a number in groups of 7 bits, the lowest first. All bytes but the last have the highest bit."""
    groups = [value >> shift & 0x7F for shift in range(0, max(1, value.bit_length()), 7)]
    return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _read(data: bytes) -> Message:
    return read_message(memoryview(data), FIELDS, name="Thing")


def _reject(data: bytes, message: str) -> None:
    with pytest.raises(WireFormatError) as caught:
        _read(data)
    assert str(caught.value) == message


def test_an_empty_message_has_no_fields() -> None:
    found = _read(b"")
    assert found == {} and found.number("id") is None and found.number("id", 7) == 7
    assert (found.numbers("sizes"), found.text("name"), found.texts("names"), found.messages("part")) == ([], "", [], [])


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 16383, 16384, 2**31, 2**32, 2**63 - 1])
def test_a_number_is_read_from_its_varint(value: int) -> None:
    assert _read(_number(1, value)).number("id") == value


@pytest.mark.parametrize("value", [-1, -2, -(2**31), -(2**63)])
def test_a_negative_number_is_read_from_its_twos_complement(value: int) -> None:
    data = _number(1, value + 2**64)
    assert len(data) == 11 and _read(data).number("id") == value


def test_repeated_numbers_may_be_single_or_packed() -> None:
    single = _number(2, 5) + _number(2, 2**64 - 3)
    packed = _bytes(2, _varint(300) + _varint(0) + _varint(2**64 - 1))
    found = _read(single + packed + _bytes(2, b""))
    assert found.numbers("sizes") == [5, -3, 300, 0, -1]
    assert count(found["sizes"], "number") == 5 and list(found) == ["sizes"]


def test_fields_keep_their_order_and_values() -> None:
    data = _bytes(4, "é漢".encode()) + _number(1, 9) + _bytes(4, b"") + _bytes(3, b"x" * 200) + _bytes(6, b"\xff\0") + _bytes(5, b"p")
    found = _read(data + _bytes(6, b""))
    assert list(found) == ["names", "id", "name", "parts", "part"]
    assert found.texts("names") == ["é漢", ""] and found.text("name") == "x" * 200 and found.text("names") == "é漢"
    assert [bytes(part) for part in found.messages("parts")] == [b"\xff\0", b""] and bytes(found.messages("part")[0]) == b"p"
    assert found.messages("names") == []


def test_fixed_numbers_have_4_or_8_bytes_and_are_not_parsed() -> None:
    single = _varint(7 << 3 | 5) + struct.pack("<f", 1.5) + _varint(9 << 3 | 1) + struct.pack("<d", -2.5)
    repeated = _varint(8 << 3 | 5) + struct.pack("<f", 3.0) + _bytes(8, struct.pack("<2f", 4.0, 5.0))
    doubles = _varint(16 << 3 | 1) + struct.pack("<d", 6.0) + _bytes(16, struct.pack("<3d", 7.0, 8.0, 9.0))
    found = _read(single + repeated + doubles)
    (f,), (d,) = found.messages("f"), found.messages("d")
    assert struct.unpack("<f", f) == (1.5,) and struct.unpack("<d", d) == (-2.5,)
    assert b"".join(found.messages("fs")) == struct.pack("<3f", 3.0, 4.0, 5.0)
    assert b"".join(found.messages("ds")) == struct.pack("<4d", 6.0, 7.0, 8.0, 9.0)
    assert count(found["fs"], "float") == 3 and count(found["ds"], "double") == 4


@pytest.mark.parametrize("field", ["1 id number", "7 f float", "9 d double"])
def test_a_field_that_is_not_repeated_has_no_packed_form(field: str) -> None:
    number = field.split()[0]
    with pytest.raises(WireFormatError, match="with the wire type 2"):
        read_message(memoryview(_bytes(int(number), bytes(8))), schema(field), name="Thing")


def test_text_and_bytes_have_one_form() -> None:
    assert schema("3 name text*, 6 parts bytes*, 1 id number") == {
        26: ("name", "text", True, False),
        50: ("parts", "bytes", True, False),
        8: ("id", "number", False, False),
    }
    assert schema("2 sizes number*, 8 fs float*, 16 ds double*") == {
        16: ("sizes", "number", True, False),
        18: ("sizes", "number", True, True),
        69: ("fs", "float", True, False),
        66: ("fs", "float", True, True),
        129: ("ds", "double", True, False),
        130: ("ds", "double", True, True),
    }


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (_bytes(10, b""), "Thing contains an unknown field 10 with the wire type 2"),
        (_number(3, 1), "Thing contains the field name with the wire type 0"),
        (_varint(1 << 3 | 7), "Thing contains the field id with the wire type 7"),
        (_bytes(3, b"abc")[:-1], "the field name of Thing exceeds its message"),
        (_varint(3 << 3 | 2) + _varint(1), "the field name of Thing exceeds its message"),
        (_varint(7 << 3 | 5) + bytes(3), "the field f of Thing exceeds its message"),
        (_varint(9 << 3 | 1) + bytes(7), "the field d of Thing exceeds its message"),
        (_bytes(3, b"\xff"), "a string of Thing is not UTF-8"),
        (_number(1, 1) * 2, "the field id of Thing occurs twice"),
        (_bytes(3, b"a") * 2, "the field name of Thing occurs twice"),
        (b"\x08", "Thing is truncated within a number"),
        (b"\x08\x80", "Thing is truncated within a number"),
        (b"\x1a", "Thing is truncated within a number"),
        (b"\x08\x80\x00", "a number is encoded in too many bytes"),
        (b"\x08\x81\x80\x00", "a number is encoded in too many bytes"),
        (b"\x08" + b"\xff" * 9 + b"\x02", "a number is encoded in too many bytes"),
        (b"\x08" + b"\x80" * 10 + b"\x01", "a number is encoded in too many bytes"),
        (b"\x08" + b"\x80" * 9 + b"\x02", "a number is encoded in too many bytes"),
        (b"\x08" + b"\x80" * 10, "a number is encoded in too many bytes"),
        (b"\x88\x00\x01", "a number is encoded in too many bytes"),
    ],
)
def test_invalid_or_ambiguous_bytes_are_rejected(data: bytes, message: str) -> None:
    _reject(data, message)
    _reject(_number(2, 5) + data, message)


def test_a_field_ends_exactly_at_the_end_of_its_message() -> None:
    assert _read(_number(1, 1) + _bytes(3, b"abc")).text("name") == "abc"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80", "a list of numbers is truncated within a number"),
        (b"\x05\x80", "a list of numbers is truncated within a number"),
        (b"\x80\x00", "a number is encoded in too many bytes"),
        (b"\x05\x80\x80\x00", "a number is encoded in too many bytes"),
        (b"\xff" * 9 + b"\x02", "a number is encoded in too many bytes"),
        (b"\x80" * 10 + b"\x01", "a number is encoded in too many bytes"),
        (b"\x80" * 10 + b"\x01\x05", "a number is encoded in too many bytes"),
    ],
)
def test_invalid_packed_numbers_are_rejected_by_numbers_and_count(data: bytes, message: str) -> None:
    found = _read(_bytes(2, data))
    for read in (lambda: found.numbers("sizes"), lambda: count(found["sizes"], "number")):
        with pytest.raises(WireFormatError) as caught:
            read()
        assert str(caught.value) == message


@pytest.mark.parametrize("numbers", [[], [0], [0, 0, 0], [127, 128], [2**64 - 1], [2**63, 1, 2**63], [1 << shift for shift in range(64)]])
def test_packed_numbers_are_counted_as_they_are_read(numbers: list[int]) -> None:
    found = _read(_bytes(2, b"".join(map(_varint, numbers))))
    signed = [number - 2**64 if number >= 2**63 else number for number in numbers]
    assert found.numbers("sizes") == signed and count(found["sizes"], "number") == len(numbers)


@pytest.mark.parametrize(("kind", "size"), [("float", 4), ("double", 8)])
def test_a_packed_list_of_fixed_numbers_has_a_whole_number_of_them(kind: Any, size: int) -> None:
    assert count([memoryview(bytes(size)), memoryview(bytes(3 * size)), memoryview(b"")], kind) == 4
    for length in (size - 1, size + 1):
        with pytest.raises(WireFormatError) as caught:
            count([memoryview(bytes(length))], kind)
        assert str(caught.value) == "a list of numbers is truncated within a number"


def test_text_is_copied_and_bytes_are_not() -> None:
    data = bytearray(_bytes(3, b"abc") + _bytes(5, b"xyz"))
    found = read_message(memoryview(data), FIELDS, name="Thing")
    data[:] = bytes(len(data))
    assert found.text("name") == "abc" and bytes(found.messages("part")[0]) == bytes(3)
