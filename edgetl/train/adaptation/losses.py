"""Losses of unlabeled images: minimum class confusion, entropy and information maximization."""

from __future__ import annotations

import torch

# Temperature of the scores in the minimum class confusion loss (Jin et al. 2020).
MCC_TEMPERATURE = 2.5


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Compute the mean entropy of the scores, in nats.

    Args:
        logits: float ``[batch, classes]``.
    """
    return -(logits.softmax(dim=1) * logits.log_softmax(dim=1)).sum(dim=1).mean()


def information_loss(logits: torch.Tensor) -> torch.Tensor:
    """Compute the negative mutual information of images and classes, in nats (SHOT: Liang et al. 2020, arXiv:2002.08546).

    It is the mean entropy of the scores minus the entropy of the mean scores. The lowest value, ``-log(classes)``, belongs to certain
    predictions of all classes equally often.

    Args:
        logits: float ``[batch, classes]``.
    """
    mean = logits.softmax(dim=1).mean(dim=0)
    return entropy(logits) + (mean * mean.clamp_min(1e-12).log()).sum()


def class_confusion(logits: torch.Tensor) -> torch.Tensor:
    """Compute the minimum class confusion loss (MCC: Jin et al. 2020, arXiv:1912.03699).

    The correlation of the scores of two classes, weighted by the certainty of each image, is normalized to 1 for each class. The loss is
    the mean of its parts between different classes: 0 for certain predictions, and at most ``(classes - 1) / classes``.

    Args:
        logits: float ``[batch, classes]``.
    """
    images, classes = logits.shape
    scores = (logits / MCC_TEMPERATURE).softmax(dim=1)
    uncertainty = -(scores * scores.clamp_min(1e-12).log()).sum(dim=1)
    certainty = 1 + torch.exp(-uncertainty.detach())
    weights = images * certainty / certainty.sum()
    confusion = (scores * weights[:, None]).T @ scores
    confusion = confusion / confusion.sum(dim=1, keepdim=True).clamp_min(1e-12)
    return (confusion.sum() - confusion.trace()) / classes
