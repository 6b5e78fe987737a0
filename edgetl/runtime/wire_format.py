"""Protocol-buffer wire format, parsed strictly: only bytes that every parser reads alike are accepted.

Parsers differ where the format leaves room (https://protobuf.dev/programming-guides/encoding/). Some cut a tag of more than 32 bits. Of two
values some take the last, and some merge both. Unknown fields are skipped. A file could thus pass the check of one parser and have another
meaning for the engine's parser. Therefore a message may hold only known fields, in their wire type; a number takes the fewest bytes; a
field that is not repeated occurs once; a length stays inside its message.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias

import numpy as np

# ``number``: a varint. ``text``: UTF-8. ``bytes``: also a message, as it lies. ``float`` and ``double``: also as they lie.
Kind: TypeAlias = Literal["number", "text", "bytes", "float", "double"]
_WIRE_TYPES: dict[Kind, int] = {"number": 0, "double": 1, "text": 2, "bytes": 2, "float": 5}
_FIXED_BYTES: dict[Kind, int] = {"float": 4, "double": 8}

Value: TypeAlias = int | str | memoryview
# By tag: the field's name, its kind, true if it is repeated, and true for the packed form.
Schema: TypeAlias = dict[int, tuple[str, Kind, bool, bool]]


class WireFormatError(Exception):
    """Bytes that are not a message of the schema, or one that parsers read in more than one way."""


class Message(dict[str, list[Value]]):
    """Fields of one message by name, each with its values in their order; a packed field has one ``memoryview`` for all."""

    def number(self, name: str, default: int | None = None) -> int | None:
        """A signed 64-bit number."""
        return _signed(self[name][0]) if name in self else default

    def numbers(self, name: str) -> list[int]:
        """All values of a repeated number."""
        found: list[int] = []
        for value in self.get(name, ()):
            found += _unpack(value) if isinstance(value, memoryview) else [_signed(value)]
        return found

    def text(self, name: str) -> str:
        """A string; empty where the message has none."""
        return str(self[name][0]) if name in self else ""

    def texts(self, name: str) -> list[str]:
        """All values of a repeated string."""
        return [str(value) for value in self.get(name, ())]

    def messages(self, name: str) -> list[memoryview]:
        """All values of a field of messages or bytes."""
        return [value for value in self.get(name, ()) if isinstance(value, memoryview)]


def schema(fields: str) -> Schema:
    """Schema of a message from number, name and kind of each field, such as ``1 dims number*, 2 data_type number``.

    ``*`` marks a repeated field; a repeated number may be packed.
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
    """Fields of the message ``name`` in ``data``; nothing is copied but text.

    Raises:
        WireFormatError: the bytes are no such message, or could be read in another way.
    """
    message, place, end = Message(), 0, len(data)
    try:
        while place < end:
            tag, place = _varint(data, place)
            if tag not in fields:
                raise WireFormatError(f"{name} holds {_describe(tag, fields)}")
            field, kind, repeated, packed = fields[tag]
            value: Value
            if kind == "number" and not packed:
                value, place = _varint(data, place)
            else:
                length, place = (_FIXED_BYTES[kind], place) if not packed and kind in _FIXED_BYTES else _varint(data, place)
                if length > end - place:
                    raise WireFormatError(f"the field {field} of {name} reaches beyond its message")
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
        raise WireFormatError(f"{name} ends within a number") from None
    except UnicodeDecodeError as error:
        raise WireFormatError(f"a text of {name} is not UTF-8") from error
    return message


def count(values: Iterable[Value], kind: Kind) -> int:
    """Number of values in a repeated field.

    Raises:
        WireFormatError: a packed field ends within a number, or holds one that takes more bytes than it needs.
    """
    found = 0
    for value in values:
        if not isinstance(value, memoryview):
            found += 1
        elif kind in _FIXED_BYTES:
            number, rest = divmod(len(value), _FIXED_BYTES[kind])
            if rest:
                raise WireFormatError("a list of numbers ends within a number")
            found += number
        else:
            found += _count_varints(value)
    return found


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    """An unsigned number of at most 64 bits at ``place``, and the place after it."""
    byte = data[place]
    if byte < 0x80:
        return byte, place + 1
    value, shift = byte & 0x7F, 7
    for place in range(place + 1, place + 10):  # noqa: B020 - where the number starts is not needed again
        byte = data[place]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if byte == 0 or value >= 2**64:
                break
            return value, place + 1
        shift += 7
    raise WireFormatError("a number takes more bytes than it needs or than 64 bits have")


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
        raise WireFormatError("a list of numbers ends within a number") from None
    return found


def _count_varints(data: memoryview) -> int:
    """Number of values in a packed list; vectorized, because weights may be packed."""
    octets = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(octets < 0x80)
    if not len(octets):
        return 0
    if not len(ends) or ends[-1] != len(octets) - 1:
        raise WireFormatError("a list of numbers ends within a number")
    lengths = np.diff(ends, prepend=-1)
    last = octets[ends]
    if ((last == 0) & (lengths > 1)).any() or (lengths > 10).any() or (last[lengths == 10] > 1).any():
        raise WireFormatError("a number takes more bytes than it needs or than 64 bits have")
    return len(ends)


def _describe(tag: int, fields: Schema) -> str:
    number, wire_type = tag >> 3, tag & 7
    known = {key >> 3: field[0] for key, field in fields.items()}
    if number in known:
        return f"the field {known[number]} in the wire type {wire_type}"
    return f"a field {number} of the wire type {wire_type}, which edgetl does not export"
