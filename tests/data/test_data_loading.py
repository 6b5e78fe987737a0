"""Batches of images, labels of samples, and stratified selection."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgetl.core.preprocess import PreprocessSpec, preprocess
from edgetl.data.folder import Sample
from edgetl.data.loading import batches, labels_of, stratified
from edgetl.errors import ConfigError, ImageError

SPEC = PreprocessSpec(input_size=(16, 16))


def sample(label: int, number: int) -> Sample:
    return Sample(Path(f"{label}/{number}"), label, hashlib.sha256(f"{label} {number}".encode()).hexdigest())


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Eleven images of different sizes. Their decoding times differ."""
    rng = np.random.default_rng(0)
    found = []
    for index in range(11):
        side = int(rng.integers(8, 300))
        path = tmp_path / f"{index}.png"
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)
        found.append(Sample(path, index % 2, f"{index:064d}"))
    return found


@pytest.mark.parametrize("batch_size", [1, 2, 4, 11, 50])
def test_batches_have_preprocessed_images_in_the_order_of_the_samples(samples: list[Sample], batch_size: int) -> None:
    expected = np.stack([preprocess(item.path, SPEC) for item in samples])
    assert np.array_equal(np.concatenate(list(batches(samples, SPEC, batch_size=batch_size))), expected)


def test_the_last_batch_has_the_remaining_images(samples: list[Sample]) -> None:
    shapes = [batch.shape for batch in batches(samples, SPEC, batch_size=4)]
    assert shapes == [(4, 3, 16, 16), (4, 3, 16, 16), (3, 3, 16, 16)]


def test_no_empty_batch_follows_a_full_last_batch(samples: list[Sample]) -> None:
    assert [len(batch) for batch in batches(samples[:8], SPEC, batch_size=4)] == [4, 4]


def test_batches_are_float32(samples: list[Sample]) -> None:
    assert next(batches(samples, SPEC)).dtype.name == "float32"


def test_no_samples_give_no_batches() -> None:
    assert list(batches([], SPEC)) == []


def test_a_batch_may_repeat_a_sample(samples: list[Sample]) -> None:
    (batch,) = batches([samples[0]] * 5, SPEC, batch_size=5)
    assert all(np.array_equal(row, batch[0]) for row in batch)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_below_one_is_an_error(samples: list[Sample], batch_size: int) -> None:
    with pytest.raises(ConfigError, match=f"the batch size {batch_size} is not possible. Use 1 or more"):
        next(batches(samples, SPEC, batch_size=batch_size))


def test_a_deleted_image_is_an_error_after_the_batches_before_it(samples: list[Sample]) -> None:
    samples[7].path.unlink()
    loading = batches(samples, SPEC, batch_size=4)
    assert len(next(loading)) == 4
    with pytest.raises(ImageError, match=r"/7\.png: No such file"):
        next(loading)


def test_labels_are_int64_in_the_order_of_the_samples(samples: list[Sample]) -> None:
    labels = labels_of(samples)
    assert labels.dtype.name == "int64" and labels.tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0]


def test_labels_of_no_samples_are_an_empty_int64_array() -> None:
    assert (labels_of([]).dtype.name, labels_of([]).shape) == ("int64", (0,))


def test_stratified_alternates_between_classes() -> None:
    data = [sample(label, number) for label in (2, 0, 1) for number in range(5)]
    assert [item.label for item in stratified(data, 7)] == [0, 1, 2, 0, 1, 2, 0]


def test_stratified_continues_with_larger_classes_when_small_classes_are_exhausted() -> None:
    data = [sample(0, 0), *(sample(1, number) for number in range(4))]
    assert [item.label for item in stratified(data, 5)] == [0, 1, 1, 1, 1]


def test_stratified_orders_each_class_by_content_hash() -> None:
    data = [sample(0, number) for number in range(9)]
    assert stratified(data, 4) == sorted(data, key=lambda item: item.content)[:4]


@pytest.mark.parametrize("count", [0, -1])
def test_stratified_of_no_images_is_empty(count: int) -> None:
    assert stratified([sample(0, 0)], count) == []


@given(st.permutations([sample(label, number) for label, n in enumerate((9, 3, 1)) for number in range(n)]), st.integers(0, 20))
@settings(deadline=None, max_examples=60)
def test_stratified_does_not_depend_on_the_order_of_the_samples(data: list[Sample], count: int) -> None:
    chosen = stratified(data, count)
    assert chosen == stratified(sorted(data, key=lambda item: item.path), count)
    assert len(set(chosen)) == len(chosen) == min(count, 13)
