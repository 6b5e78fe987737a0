"""Lineage of a model: origin of the weights, their licenses, and the training data."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from edgetl.core.config import StrictModel

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Parent(StrictModel):
    """Parent: weights, a run or a teacher from which the model's weights derive.

    Attributes:
        kind: ``embedded``: embedded backbone. ``weights``: weights file. ``run``: earlier fine-tuning. ``teacher``: network with outputs
            used as training targets, or one of its parents.
        name: name of the backbone, file or run.
        architecture: timm or torchvision architecture.
        sha256: SHA-256 of the weights file, or of the run's ``run.json``; none for random weights.
        license: license of the weights, from their card or the user; none if unknown.
        data_fingerprint: fingerprint of the training images; none if unknown.
        validation: task metric of a run on its own validation images.
    """

    kind: Literal["embedded", "weights", "run", "teacher"]
    name: str
    architecture: str
    sha256: Sha256 | None
    license: str | None
    data_fingerprint: Sha256 | None = None
    validation: float | None = None


def describe_parent(parent: Parent) -> str:
    """Describe a parent in one line."""
    kind = {"embedded": "embedded backbone", "weights": "weights", "run": "run", "teacher": "teacher"}[parent.kind]
    digest = f"SHA-256 {parent.sha256[:12]}…" if parent.sha256 else "no hash"
    images = f", trained on images {parent.data_fingerprint[:12]}…" if parent.data_fingerprint else ""
    figure = "" if parent.validation is None else f", {parent.validation:.4f} in its validation"
    return f"{kind} {parent.name} ({parent.architecture}), license {parent.license or 'not stated'}, {digest}{images}{figure}"


class Lineage(StrictModel):
    """Lineage: origin of the weights and the training data.

    Attributes:
        backbone: name of the backbone, as given to ``--backbone``.
        architecture: timm or torchvision architecture.
        weights_sha256: SHA-256 of the backbone's weights file; none for random weights.
        license: the most restrictive license of the parents; none if unknown.
        parents: all parents of the weights, the oldest first.
        strategy: fine-tuning strategy.
        run_sha256: SHA-256 of the exported run's ``run.json``.
        data_fingerprint: fingerprint of the labeled images.
        train_images: number of training images.
        leaked_test_images: number of test images that are copies of training images.
    """

    backbone: str
    architecture: str
    weights_sha256: Sha256 | None
    license: str | None
    parents: tuple[Parent, ...] = ()
    strategy: str
    run_sha256: Sha256
    data_fingerprint: Sha256
    train_images: int
    leaked_test_images: int = 0


class TargetImages(StrictModel):
    """Images of the target domain of an adapted run (``edgetl adapt``). Such a bundle uses them in place of the images of the training.

    They calibrate int8, decide in the accuracy gate, and are the golden images and the monitoring reference.

    Attributes:
        n: number of different images that were read, without the labeled ones of another folder.
        adapted: number of them that adapted the network.
        labeled: number of labeled images on which the accuracy gate decides. 0: the gate decides without labels, by the agreement with the
            trained model.
        images_sha256: SHA-256 over the content hashes of the ``n`` images.
    """

    n: int = Field(ge=1)
    adapted: int = Field(ge=0)
    labeled: int = Field(ge=0)
    images_sha256: Sha256
