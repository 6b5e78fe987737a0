"""Audit with frozen features: near-duplicates and label errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from edgetl.data.audit.audit import FeatureFindings, audit
from edgetl.data.audit.copies import Joined
from edgetl.data.content.facts import ImageFacts
from edgetl.data.content.registration import make_thumbnail
from edgetl.data.folder import ImageFolder, Sample, scan_without_limits
from edgetl.data.split import Splits
from edgetl.train.artifacts.loading.catalogue import pretraining_images
from edgetl.train.artifacts.loading.lineage import find_in_pretraining, pretraining_alarms
from edgetl.train.artifacts.seen_images import SeenImages, perceptual_hashes, prefixes
from edgetl.train.config.options import BackboneConfig
from edgetl.train.workflows.audit.features import AuditFeatures
from edgetl.train.workflows.audit.findings import MOST_UNCERTAIN, list_label_issues, list_uncertain_labels
from edgetl.train.workflows.audit.label_errors import find_label_errors, out_of_sample, self_confidence
from edgetl.train.workflows.audit.neighbors import find_near_duplicates
from tests.data.test_data_audit import photo, save


def test_changed_labels_are_the_most_probable_errors() -> None:
    random = np.random.default_rng(0)
    truth = np.repeat(np.arange(4), 40)
    features = (random.normal(size=(4, 16))[truth] * 2 + random.normal(size=(160, 16))).astype(np.float32)
    changed = random.choice(160, 13, replace=False)
    labels = truth.copy()
    labels[changed] = (labels[changed] + 1) % 4
    probabilities = out_of_sample(features, labels, np.arange(160))
    assert len(set(find_label_errors(probabilities, labels)[:13]) & set(changed)) >= 11
    assert np.median(self_confidence(probabilities, labels)[changed]) < 0.2 < 0.8 < np.median(self_confidence(probabilities, labels))


def test_images_of_one_set_are_left_out_together() -> None:
    random = np.random.default_rng(1)
    # Copies with the same random labels: a probe that saw one would predict the other.
    features = np.tile(random.normal(size=(100, 60)), (2, 1)).astype(np.float32)
    labels = np.tile(random.integers(0, 2, 100), 2)
    probabilities = out_of_sample(features, labels, np.tile(np.arange(100), 2))
    assert (probabilities.argmax(axis=1) == labels).mean() < 0.8


def test_a_crop_is_a_near_duplicate_and_a_similar_image_is_not() -> None:
    images = [photo(seed) for seed in range(12)]
    images.append(images[3].crop((12, 10, 110, 90)))
    random = np.random.default_rng(2)
    features = random.normal(size=(13, 20)).astype(np.float32)
    features[12] = features[3] + 0.1 * random.normal(size=20)
    features[1] = features[0] + 0.1 * random.normal(size=20)
    thumbnails = np.stack([make_thumbnail(image).gray for image in images])
    labels, joined = np.array([*[0, 1] * 6, 1]), Joined(13)
    labels[1] = 0
    found = find_near_duplicates(AuditFeatures(features, features, thumbnails, np.zeros(13, bool), np.zeros(13, bool)), labels, joined)
    assert [(pair.first, pair.second) for pair in found.pairs] == [(3, 12)] and joined.connected(3, 12)
    assert (0, 1) in [item[:2] for item in found.similar]


def test_similar_pairs_with_different_labels_come_first_and_dark_images_are_not_compared() -> None:
    images, random = [photo(seed) for seed in range(12)], np.random.default_rng(2)
    features = random.normal(size=(12, 20)).astype(np.float32)
    for first, distance in ((0, 0.1), (4, 0.01), (8, 0.02)):
        features[first + 1] = features[first] + distance * random.normal(size=20)
    thumbnails, plain = np.stack([make_thumbnail(image).gray for image in images]), np.arange(12) == 8
    labels = np.array([0, 1, 0, 1, 0, 0, 1, 0, 1, 1, 0, 1])
    found = find_near_duplicates(AuditFeatures(features, features, thumbnails, np.zeros(12, bool), plain), labels, Joined(12))
    assert [item[:2] for item in found.similar][:2] == [(0, 1), (4, 5)]
    assert not {8} & {index for item in found.similar for index in item[:2]}


def test_label_issues_name_one_image_of_a_set_and_leave_conflicts_out() -> None:
    samples = tuple(Sample(Path(f"{index}.png"), int(index == 3), f"{index:064x}") for index in range(6))
    folder = ImageFolder(Path(), ("cat", "dog"), samples, ())
    joined = Joined(6)
    joined.connect(0, 1)  # copies with one label
    joined.connect(2, 3)  # a conflict
    flagged = dict.fromkeys(range(6), 0.3) | {5: 0.1}
    predictions = dict.fromkeys(range(6), ("dog", 0.7))
    issues = list(list_label_issues(folder, joined, flagged, predictions))
    assert [(issue.file, issue.strong) for issue in issues] == [("5.png", True), ("0.png", False), ("4.png", False)]


def test_uncertain_labels_are_the_least_probable_ones_of_each_class_without_copies_and_conflicts() -> None:
    samples = tuple(Sample(Path(f"{index}.png"), int(index in (3, 5)), f"{index:064x}") for index in range(60))
    folder = ImageFolder(Path(), ("cat", "dog"), samples, ())
    joined = Joined(60)
    joined.connect(0, 1)  # copies with one label
    joined.connect(2, 3)  # a conflict
    given = {index: index / 100 for index in range(60)}
    found = list(list_uncertain_labels(folder, joined, given))
    assert [item.file for item in found if item.label == "dog"] == ["5.png"]
    cats = [item.file for item in found if item.label == "cat"]
    assert cats[:3] == ["0.png", "4.png", "6.png"] and len(cats) == MOST_UNCERTAIN


def test_a_mirrored_crop_is_a_near_duplicate() -> None:
    images = [photo(seed) for seed in range(12)]
    images.append(images[3].crop((12, 10, 110, 90)).transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    features = np.random.default_rng(3).normal(size=(13, 20)).astype(np.float32)
    features[12] = features[3]
    thumbnails = np.stack([make_thumbnail(image).gray for image in images])
    found = find_near_duplicates(
        AuditFeatures(features, features, thumbnails, np.zeros(13, bool), np.zeros(13, bool)), np.array([*[0, 1] * 6, 1]), Joined(13)
    )
    assert [(pair.first, pair.second) for pair in found.pairs] == [(3, 12)]


def test_images_of_an_earlier_run_and_their_copies_are_recognized(tmp_path: Path) -> None:
    for seed in range(4):
        save(photo(seed), tmp_path / "old" / "class" / f"{seed}.png")
    old = scan_without_limits(tmp_path / "old").samples
    seen = SeenImages(trained=prefixes(old[:2]), selected=prefixes(old[2:]), perceptual=perceptual_hashes(old))
    save(photo(0), tmp_path / "new" / "class" / "0.png")
    save(photo(3).resize((100, 80)), tmp_path / "new" / "class" / "1.jpg")
    save(photo(9), tmp_path / "new" / "class" / "2.png")
    assert seen.find(scan_without_limits(tmp_path / "new").samples) == [0, 1]


def test_images_of_the_pretraining_raise_an_alarm_and_are_leaked() -> None:
    hashes = sorted(pretraining_images("edgetl_small").perceptual)
    facts = ImageFacts(width=64, height=64, brightness=0.5, contrast=0.2, sharpness=0.5, hash=hashes[100] ^ 1)
    other = replace(facts, hash=0x5A5A_A5A5_0F0F_F0F0)
    samples = tuple(Sample(Path(f"{index}.png"), 0, f"{index:064x}", "test", facts=item) for index, item in enumerate((facts, other)))
    folder = ImageFolder(Path(), ("a",), samples, ())
    (alarm,) = pretraining_alarms(Splits(folder, (), (), samples), BackboneConfig(name="edgetl_small"))
    assert alarm.startswith("1 of 2 test images, or copies of them, are among the images that pretrained edgetl_small")
    report = audit(folder, [], FeatureFindings(pretraining=(0,))).report
    assert report.pretraining == ("0.png",) and report.leakage[0].earlier_run == 1
    assert not find_in_pretraining(samples, BackboneConfig(name="mobilenetv3_small_050"))
