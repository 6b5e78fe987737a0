"""Mutations of ONNX and IR files that keep most of their structure. Many mutated files therefore pass a parser."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

# Numbers at the limits of sizes, indices and masks.
NUMBERS = (
    0,
    1,
    2,
    3,
    7,
    8,
    127,
    128,
    255,
    256,
    2**15,
    2**16,
    2**31 - 1,
    2**31,
    2**32,
    2**32 + 1,
    2**53,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 1,
)


@dataclass(frozen=True)
class _Field:
    """Protocol-buffer field: number, wire type, and value (a varint, bytes, or the fields of a message)."""

    number: int
    wire: int
    value: int | bytes | tuple[_Field, ...]


# Fields that are messages, by the path of field numbers from ModelProto.
_MESSAGES: dict[int, object] = {
    7: {1: {5: {5: {}}, 9: {}}, 5: {}, 11: {2: {1: {2: {1: {}}}}}, 12: {2: {1: {2: {1: {}}}}}, 13: {2: {1: {2: {1: {}}}}}},
    8: {},
    14: {},
}


def _parse(data: bytes, messages: dict[int, object]) -> tuple[_Field, ...]:
    fields, place = [], 0
    while place < len(data):
        tag, place = _read_varint(data, place)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, place = _read_varint(data, place)
            fields.append(_Field(number, wire, value))
            continue
        length, place = _read_varint(data, place) if wire == 2 else (8 if wire == 1 else 4, place)
        piece = data[place : place + length]
        place += length
        inner = messages.get(number)
        fields.append(_Field(number, wire, _parse(piece, inner) if isinstance(inner, dict) else piece))
    return tuple(fields)


def _read_varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, place


def varint(value: int, *, extra: int = 0) -> bytes:
    """Encode a number as a varint, with ``extra`` unnecessary bytes."""
    parts = [value & 0x7F]
    while value := value >> 7:
        parts.append(value & 0x7F)
    parts += [0] * extra
    return bytes([part | 0x80 for part in parts[:-1]] + parts[-1:])


def _write(fields: tuple[_Field, ...], extra: Callable[[], int]) -> bytes:
    """Encode the fields. ``extra`` returns the number of unnecessary bytes of the next number."""
    parts = []
    for field in fields:
        parts.append(varint(field.number << 3 | field.wire, extra=extra()))
        if isinstance(field.value, int):
            parts.append(varint(field.value, extra=extra()))
            continue
        value = field.value if isinstance(field.value, bytes) else _write(field.value, extra)
        parts += [varint(len(value), extra=extra()), value] if field.wire == 2 else [value]
    return b"".join(parts)


class OnnxMutator:
    """Mutations of one ONNX file."""

    def __init__(self, model: bytes) -> None:
        self._model, self._fields = model, _parse(model, _MESSAGES)

    def mutate(self, rng: random.Random) -> bytes:
        """Change fields, or plain bytes, in one to four places."""
        if rng.random() < 0.25:
            return flip(self._model, rng)
        fields = self._fields
        for _ in range(rng.randint(1, 4)):
            fields = _change(fields, rng)
        rate = rng.choice((0, 0, 0, 0.001))
        return _write(fields, lambda: rng.randint(1, 3) if rate and rng.random() < rate else 0)


def _change(fields: tuple[_Field, ...], rng: random.Random) -> tuple[_Field, ...]:
    """Change one field of the message or of a nested message."""
    if not fields:
        return fields
    index = rng.randrange(len(fields))
    field = fields[index]
    if isinstance(field.value, tuple) and rng.random() < 0.9:
        changed: tuple[_Field, ...] = (_Field(field.number, field.wire, _change(field.value, rng)),)
    else:
        changed = rng.choice(_CHANGES)(field, fields, rng)
    return (*fields[:index], *changed, *fields[index + 1 :])


def _other_number(field: _Field, _: tuple[_Field, ...], rng: random.Random) -> tuple[_Field, ...]:
    high = rng.choice((0, 1 << 29, 1 << 32, 1 << 29 | 1 << 30))
    number = field.number | high if rng.random() < 0.5 else rng.randint(0, 30)
    return (_Field(number, field.wire, field.value),)


def _other_value(field: _Field, _: tuple[_Field, ...], rng: random.Random) -> tuple[_Field, ...]:
    if isinstance(field.value, int):
        value: int | bytes = rng.choice((*NUMBERS, (field.value + rng.choice((-1, 1))) % 2**64, (-rng.randint(1, 9)) % 2**64))
    elif isinstance(field.value, bytes):
        value = flip(field.value, rng) if field.value else b"x"
    else:
        return ()
    return (_Field(field.number, field.wire, value),)


def _twice(field: _Field, _: tuple[_Field, ...], __: random.Random) -> tuple[_Field, ...]:
    return (field, field)


def _gone(_: _Field, __: tuple[_Field, ...], ___: random.Random) -> tuple[_Field, ...]:
    return ()


def _swapped(field: _Field, fields: tuple[_Field, ...], rng: random.Random) -> tuple[_Field, ...]:
    """Replace the field with another one of the same number in the message, such as another input or tensor."""
    same = [other for other in fields if other.number == field.number]
    return (rng.choice(same),)


_CHANGES = (_other_value, _other_value, _other_value, _other_value, _swapped, _swapped, _other_number, _twice, _gone)


def flip(data: bytes, rng: random.Random) -> bytes:
    """Change, insert, remove or repeat a few bytes."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        place = rng.randrange(len(changed)) if changed else 0
        match rng.randrange(6):
            case 0:
                changed[place : place + 1] = rng.randbytes(1)
            case 1 | 2 if changed:
                changed[place] ^= 1 << rng.randrange(8)
            case 3:
                changed[place:place] = rng.randbytes(rng.randint(1, 4))
            case 4:
                del changed[place : place + rng.randint(1, 8)]
            case _:
                changed[place:place] = changed[place : place + rng.randint(1, 40)]
    return bytes(changed)


_WORDS = (
    "Const",
    "Constant",
    "const",
    "Parameter",
    "Result",
    "ReLU",
    "Convolution",
    "Interpolate",
    "Reshape",
    "Gather",
    "Loop",
    "ReadValue",
    "opset1",
    "opset8",
    "opset15",
    "extension",
    "f32",
    "i64",
    "string",
    "u4",
    "",
    "?",
    "-1",
    "true",
    "numpy",
    "1,1",
    "0,0,0,0",
    "value",
)


class IrMutator:
    """Mutations of one IR: of its XML, its weights, or both."""

    def __init__(self, xml: bytes, weights: bytes) -> None:
        self._xml, self._weights = xml.decode(), weights
        # Places of attribute values, dimensions, names of elements and attributes, and complete elements.
        self._values = [match.span(1) for match in re.finditer(r'="([^"]*)"', self._xml)]
        self._dims = [match.span(1) for match in re.finditer(r"<dim>(-?\d+)</dim>", self._xml)]
        self._names = [match.span(1) for match in re.finditer(r"[< /](\w[\w-]*)(?==\"|>| )", self._xml)]
        self._elements = [match.span() for match in re.finditer(r"<(\w+)[^>]*/>|<(layer|port|dim|data)\b.*?</\2>", self._xml, re.DOTALL)]

    def mutate(self, rng: random.Random) -> tuple[bytes, bytes]:
        """Return the XML and the weights after one to three changes."""
        xml, weights = self._xml, self._weights
        kind = rng.random()
        if kind < 0.1:
            weights = weights[: rng.randrange(len(weights))] if rng.random() < 0.3 else flip(weights, rng)
        if kind < 0.05 or 0.1 <= kind < 0.2:
            return flip(xml.encode(), rng), weights
        if kind >= 0.1:
            # Edits start at the end, because an edit moves all later places.
            for start, end, text in sorted((self._edit(rng) for _ in range(rng.choice((1, 1, 2, 3)))), reverse=True):
                xml = xml[:start] + text + xml[end:]
        return xml.encode(), weights

    def _edit(self, rng: random.Random) -> tuple[int, int, str]:
        match rng.randrange(8):
            case 0 | 1 | 2:
                start, end = rng.choice(self._values)
                return start, end, self._other(self._xml[start:end], rng)
            case 3 | 4:
                start, end = rng.choice(self._dims)
                return start, end, self._other(self._xml[start:end], rng)
            case 5:
                start, end = rng.choice(self._names)
                other = rng.choice(self._names)
                return start, end, self._xml[other[0] : other[1]]
            case 6:
                start, end = rng.choice(self._elements)
                other = rng.choice(self._elements)
                return start, end, rng.choice(("", self._xml[start:end] * 2, self._xml[other[0] : other[1]]))
            case _:
                start, end = rng.choice(self._values)
                other = rng.choice(self._values)
                return start, end, self._xml[other[0] : other[1]]

    @staticmethod
    def _other(text: str, rng: random.Random) -> str:
        numbers = re.findall(r"\d+", text)
        if numbers and rng.random() < 0.8:
            number = rng.choice(numbers)
            new = rng.choice(
                (str(rng.choice(NUMBERS)), str(max(0, int(number) + rng.choice((-1, 1)))), f"-{number}", str(rng.randint(0, 64)))
            )
            return text.replace(number, new, 1)
        return rng.choice(_WORDS)
