"""Strict parser of the protocol-buffer wire format. It accepts only bytes that every parser reads in the same way.

The format is ambiguous in places (https://protobuf.dev/programming-guides/encoding/). Some parsers truncate a tag of more than 32 bits. Of
two values, some parsers use the last and others merge both. All skip unknown fields. A file could therefore pass the check of one parser
and have another meaning for the engine's parser. This parser has stricter rules:

- A message contains only known fields, in their wire type.
- A number uses the smallest number of bytes.
- A field that is not repeated occurs once.
- A length does not exceed its message.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias

import numpy as np

# ``number``: a varint. ``text``: UTF-8. ``bytes``: bytes, or an unparsed message. ``float`` and ``double``: unparsed bytes.
Kind: TypeAlias = Literal["number", "text", "bytes", "float", "double"]
_WIRE_TYPES: dict[Kind, int] = {"number": 0, "double": 1, "text": 2, "bytes": 2, "float": 5}
_FIXED_BYTES: dict[Kind, int] = {"float": 4, "double": 8}

Value: TypeAlias = int | str | memoryview
# For each tag: name and kind of the field, True if it is repeated, True for the packed form.
Schema: TypeAlias = dict[int, tuple[str, Kind, bool, bool]]


class WireFormatError(Exception):
    """Error for bytes that are not a message of the schema, or that are ambiguous."""


class Message(dict[str, list[Value]]):
    """Fields of a message by name, each with its values in order. A packed field has one ``memoryview`` for all its values."""

    def number(self, name: str, default: int | None = None) -> int | None:
        """Return a signed 64-bit number, or ``default`` if the message has no such field."""
        return _signed(self[name][0]) if name in self else default

    def numbers(self, name: str) -> list[int]:
        """Return all values of a repeated number."""
        found: list[int] = []
        for value in self.get(name, ()):
            found += _unpack(value) if isinstance(value, memoryview) else [_signed(value)]
        return found

    def text(self, name: str) -> str:
        """Return a string; empty if the message has no such field."""
        return str(self[name][0]) if name in self else ""

    def texts(self, name: str) -> list[str]:
        """Return all values of a repeated string."""
        return [str(value) for value in self.get(name, ())]

    def messages(self, name: str) -> list[memoryview]:
        """Return all values of a field of messages or bytes."""
        return [value for value in self.get(name, ()) if isinstance(value, memoryview)]


def schema(fields: str) -> Schema:
    """Return the schema of a message. ``fields`` has number, name and kind of each field: ``1 dims number*, 2 data_type number``.

    ``*`` marks a repeated field. A repeated number may be packed.
    """
    found: Schema = {}
    kinds: dict[str, Kind] = {kind: kind for kind in _WIRE_TYPES}
    for number, name, word in (field.split() for field in fields.split(", ")):
        kind, repeated = kinds[word.removesuffix("*")], word.endswith("*")
        found[int(number) << 3 | _WIRE_TYPES[kind]] = name, kind, repeated, False
        if repeated and kind in ("number", "float", "double"):
            found[int(number) << 3 | 2] = name, kind, True, True
    return found


def read_message(data: memoryview, fields: Schema, *, name: str) -> Message:
    """Parse the message ``name`` in ``data``. Only text is copied.

    Raises:
        WireFormatError: the bytes are not a message of the schema, or are ambiguous.
    """
    message, place, end = Message(), 0, len(data)
    try:
        while place < end:
            tag, place = _varint(data, place)
            if tag not in fields:
                raise WireFormatError(f"{name} contains {_describe(tag, fields)}")
            field, kind, repeated, packed = fields[tag]
            value: Value
            if kind == "number" and not packed:
                value, place = _varint(data, place)
            else:
                length, place = (_FIXED_BYTES[kind], place) if not packed and kind in _FIXED_BYTES else _varint(data, place)
                if length > end - place:
                    raise WireFormatError(f"the field {field} of {name} exceeds its message")
                piece = data[place : place + length]
                place += length
                value = str(piece, "utf-8") if kind == "text" else piece
            if field in message:
                if not repeated:
                    raise WireFormatError(f"the field {field} of {name} occurs twice")
                message[field].append(value)
            else:
                message[field] = [value]
    except IndexError:
        raise WireFormatError(f"{name} is truncated within a number") from None
    except UnicodeDecodeError as error:
        raise WireFormatError(f"a string of {name} is not UTF-8") from error
    return message


def count(values: Iterable[Value], kind: Kind) -> int:
    """Return the number of values in a repeated field.

    Raises:
        WireFormatError: a packed field is truncated within a number, or has a number with too many bytes.
    """
    found = 0
    for value in values:
        if not isinstance(value, memoryview):
            found += 1
        elif kind in _FIXED_BYTES:
            number, rest = divmod(len(value), _FIXED_BYTES[kind])
            if rest:
                raise WireFormatError("a list of numbers is truncated within a number")
            found += number
        else:
            found += _count_varints(value)
    return found


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    """Return the unsigned number of at most 64 bits at ``place``, and the place after it."""
    byte = data[place]
    if byte < 0x80:
        return byte, place + 1
    value, shift = byte & 0x7F, 7
    for place in range(place + 1, place + 10):  # noqa: B020 - the start of the number is not needed again
        byte = data[place]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if byte == 0 or value >= 2**64:
                break
            return value, place + 1
        shift += 7
    raise WireFormatError("a number is encoded in too many bytes")


def _signed(value: Value) -> int:
    number = int(value) if isinstance(value, int) else 0
    return number - 2**64 if number >= 2**63 else number


def _unpack(data: memoryview) -> list[int]:
    found, place = [], 0
    try:
        while place < len(data):
            value, place = _varint(data, place)
            found.append(_signed(value))
    except IndexError:
        raise WireFormatError("a list of numbers is truncated within a number") from None
    return found


def _count_varints(data: memoryview) -> int:
    """Return the number of values in a packed list. The code is vectorized, because weights may be packed."""
    octets = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(octets < 0x80)
    if not len(octets):
        return 0
    if not len(ends) or ends[-1] != len(octets) - 1:
        raise WireFormatError("a list of numbers is truncated within a number")
    lengths = np.diff(ends, prepend=-1)
    last = octets[ends]
    if ((last == 0) & (lengths > 1)).any() or (lengths > 10).any() or (last[lengths == 10] > 1).any():
        raise WireFormatError("a number is encoded in too many bytes")
    return len(ends)


def _describe(tag: int, fields: Schema) -> str:
    number, wire_type = tag >> 3, tag & 7
    known = {key >> 3: field[0] for key, field in fields.items()}
    if number in known:
        return f"the field {known[number]} with the wire type {wire_type}"
    return f"an unknown field {number} with the wire type {wire_type}"
