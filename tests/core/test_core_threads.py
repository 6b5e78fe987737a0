"""Threads that work ahead."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edgetl.core.system.threads import map_ahead


def test_results_keep_the_order_and_few_items_are_read_in_advance() -> None:
    read: list[int] = []

    def items() -> Iterator[int]:
        for number in range(1000):
            read.append(number)
            yield number

    results = map_ahead(lambda number: number * number, items(), ahead=4)
    assert next(results) == 0 and read == [0, 1, 2, 3]
    assert list(results) == [number * number for number in range(1, 1000)]


def test_an_error_of_an_item_is_raised_in_its_place() -> None:
    results = map_ahead(lambda number: 6 // number, [3, 2, 0, 1], ahead=8)
    assert [next(results), next(results)] == [2, 3]
    with pytest.raises(ZeroDivisionError):
        next(results)
