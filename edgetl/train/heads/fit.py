"""Fitting heads other than the linear one on the frozen trunk's features: cosine, knn, mlp."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from edgetl.core.progress import Progress, silent
from edgetl.errors import ConfigError
from edgetl.train.config.options import HeadConfig
from edgetl.train.heads.linear import class_weights, spread
from edgetl.train.heads.modules import HEAD_NAME, Directions, HeadedNetwork, HeadSpec, NearestNeighbours, make_adapter, shares, with_head
from edgetl.train.heads.multi_stage import check_stage_features
from edgetl.train.networks.backbone import Backbone, feature_extractor

NEIGHBOURS = (100, 50, 20, 10, 5, 3, 1)
TEMPERATURES = (0.3, 0.1, 0.07, 0.03)
# Where leaving one out can choose nothing: Wu et al.'s temperature.
USUAL_TEMPERATURE = 0.07
# Images at a time: similarities to the whole bank take memory.
BLOCK = 256
SCALES = (4.0, 8.0, 16.0, 32.0, 64.0)
COSINE_ITERATIONS = 100
HIDDEN = 256
MLP_BATCH = 128
MLP_RATE = 1e-3
MLP_DECAY = 1e-2
MLP_DROPOUT = 0.3
MLP_STEPS_BETWEEN_LOOKS = 20
MLP_MOST_STEPS = 4000
MLP_PATIENCE = 15


@dataclass(frozen=True)
class Rows:
    """Data for fitting a head.

    Attributes:
        features: float32 ``[n, width]`` of the backbone.
        labels: int64 ``[n]``.
        groups: int64 ``[n]``, equal for images of one group; none where images have no groups.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class FittedHead:
    """A head, and how it does on the images that it was fitted on (knn: each by the others)."""

    spec: HeadSpec
    adapter: nn.Module
    head: nn.Linear
    train_accuracy: float


def give_head(backbone: Backbone, config: HeadConfig) -> Backbone:
    """``backbone`` with the head and the features that ``config`` asks for, before it is fitted; as it is where that is the plain head.

    Raises:
        ConfigError: the backbone does not show its stages, or has several columns.
    """
    spec = HeadSpec(kind=config.kind, features=config.features)
    if spec.plain:
        return backbone
    if backbone.columns:
        raise ConfigError(f"--head and --features: {backbone.name} has several columns, whose head is a linear one. Remove the options.")
    if config.features == "layers":
        check_stage_features(feature_extractor(backbone.model, backbone.head_name), backbone.name, backbone.spec.input_size)
    classes = backbone.head.out_features
    # What knn and mlp put before the linear layer has a size only when it is fitted; until then features pass through.
    model = with_head(backbone.model, spec.model_copy(update={"kind": "linear"}), classes)
    return dataclasses.replace(backbone, model=model, head_name=HEAD_NAME)


def set_head(model: nn.Module, fitted: FittedHead) -> None:
    """Put a fitted head into a network of ``give_head``."""
    assert isinstance(model, HeadedNetwork)
    model.spec, model.adapter, model.head = fitted.spec, fitted.adapter, fitted.head


def fit_other_head(
    spec: HeadSpec, train: Rows, val: Rows, classes: int, *, views: Sequence[NDArray[np.float32]] = (), seed: int = 0,
    balanced: bool = False, progress: Progress = silent,
) -> FittedHead:  # fmt: skip
    """Fit the head that ``spec`` names.

    Args:
        spec: its kind and features.
        train: what it learns.
        val: chooses scale and length of the fit, by log-loss.
        classes: of the answers.
        views: the training images' features under other crops, each ``[n, width]``; knn looks at none of them.
        seed: of the mlp's first weights and batches.
        balanced: every class weighs the same.
        progress: called after each fit.
    """
    adapter: nn.Module
    weights = torch.from_numpy(class_weights(train.labels)) if balanced else torch.ones(classes)
    whole = Rows(np.concatenate([train.features, *views]), np.tile(train.labels, 1 + len(views)))
    match spec.kind:
        case "cosine":
            adapter, head = fit_cosine(whole, val, weights, progress=progress)
        case "mlp":
            spec = spec.model_copy(update={"hidden": HIDDEN})
            adapter, head = fit_mlp(spec, whole, val, weights, seed=seed, progress=progress)
        case "knn":
            return _fit_knn(spec, train, val, weights)
        case "linear":
            raise AssertionError("edgetl.train.heads.linear fits the linear head")
        case _:
            assert_never(spec.kind)
    adapter, head = adapter.eval().requires_grad_(False), head.requires_grad_(False)
    right = head(adapter(torch.from_numpy(train.features))).argmax(dim=1).numpy() == train.labels
    return FittedHead(spec, adapter, head, float(right.mean()))


def fit_cosine(train: Rows, val: Rows, weights: torch.Tensor, *, progress: Progress = silent) -> tuple[Directions, nn.Linear]:
    """``logits = scale * (cosine(features - centre, direction of the class) - 1) + bias`` (Gidaris and Komodakis 2018, arXiv:1804.09458).

    The directions begin as the classes' means (Qi et al. 2018, arXiv:1712.07136) and are fitted by L-BFGS on the log-loss; the scale,
    which bounds what a fit can say, is the one with the lowest log-loss on ``val``. The bias, which theirs has not, lets a class be rarer
    than another: the border between two directions alone passes through the centre. Features of another scale give the same answers.

    Args:
        train: what is fitted.
        val: chooses the scale.
        weights: float32 ``[classes]``, of each class in the loss.
        progress: told after each scale.
    """
    adapter = Directions(train.features.shape[1])
    adapter.centre.copy_(torch.from_numpy(train.features.mean(axis=0)))
    rows, labels = adapter(torch.from_numpy(train.features)), torch.from_numpy(train.labels)
    seen, truth = adapter(torch.from_numpy(val.features)), torch.from_numpy(val.labels)
    first = torch.stack([rows[labels == index].sum(dim=0) for index in range(len(weights))])
    best, least = _linear(first, torch.zeros(len(weights))), math.inf
    for index, scale in enumerate(SCALES, start=1):
        directions, bias = _fit_directions(rows, labels, first, scale, weights)
        # cosine - 1 is minus half the squared distance; exporters leave out a bias of zeros, and the head's refitting needs one.
        head = _linear(scale * F.normalize(directions, dim=1), bias - scale)
        loss = float(F.cross_entropy(head(seen), truth, weights))
        if loss < least:
            best, least = head, loss
        progress("fitting the head", index, len(SCALES))
    return adapter, best


def _fit_directions(
    rows: torch.Tensor, labels: torch.Tensor, first: torch.Tensor, scale: float, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Directions ``[classes, width]``, of any length, and the bias ``[classes]``."""
    directions = F.normalize(first, dim=1).clone().requires_grad_(True)
    bias = torch.zeros(len(first), requires_grad=True)
    optimizer = torch.optim.LBFGS([directions, bias], max_iter=COSINE_ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(scale * rows @ F.normalize(directions, dim=1).T + bias, labels, weights)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return directions.detach(), bias.detach()


def fit_mlp(
    spec: HeadSpec, train: Rows, val: Rows, weights: torch.Tensor, *, seed: int, progress: Progress = silent
) -> tuple[nn.Module, nn.Linear]:
    """One hidden layer on standardised features, by AdamW with dropout, as it was where the log-loss on ``val`` was lowest.

    The standardisation is folded into the first layer. The same seed gives the same weights on a CPU with the same libraries.

    Args:
        spec: says how many hidden units.
        train: what is fitted.
        val: stops the fit.
        weights: float32 ``[classes]``, of each class in the loss.
        seed: of the first weights, the batches and the dropout.
        progress: told after each look at ``val``.
    """
    mean, width = torch.from_numpy(train.features.mean(axis=0)), train.features.shape[1]
    std = torch.from_numpy(spread(train.features))
    rows, labels = (torch.from_numpy(train.features) - mean) / std, torch.from_numpy(train.labels)
    seen, truth = (torch.from_numpy(val.features) - mean) / std, torch.from_numpy(val.labels)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        hidden, head = make_adapter(spec, width, len(weights))
        _descend(nn.Sequential(hidden, nn.Dropout(MLP_DROPOUT), head), (rows, labels), (seen, truth), weights, progress)
    first = hidden.get_submodule("0")
    assert isinstance(first, nn.Linear)
    with torch.no_grad():
        first.weight.div_(std)
        first.bias.sub_(first.weight @ mean)
    return hidden, head


def _descend(
    model: nn.Sequential, train: tuple[torch.Tensor, torch.Tensor], val: tuple[torch.Tensor, torch.Tensor], weights: torch.Tensor,
    progress: Progress,
) -> None:  # fmt: skip
    """Steps until ``val``'s log-loss has not fallen for a while; leaves the weights that had the lowest."""
    rows, labels = train
    optimizer = torch.optim.AdamW(model.parameters(), lr=MLP_RATE, weight_decay=MLP_DECAY)
    best, least, waited = _copy(model), math.inf, 0
    for step in range(MLP_MOST_STEPS):
        if step % MLP_STEPS_BETWEEN_LOOKS == 0:
            model.eval()
            with torch.no_grad():
                loss = float(F.cross_entropy(model(val[0]), val[1], weights))
            best, least, waited = (_copy(model), loss, 0) if loss < least else (best, least, waited + 1)
            if waited >= MLP_PATIENCE:
                break
            model.train()
            progress("fitting the head", step, MLP_MOST_STEPS)
        chosen = torch.randint(len(rows), (min(MLP_BATCH, len(rows)),))
        optimizer.zero_grad()
        F.cross_entropy(model(rows[chosen]), labels[chosen], weights).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    progress("fitting the head", MLP_MOST_STEPS, MLP_MOST_STEPS)
    model.load_state_dict(best)
    model.eval()


def _copy(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def _fit_knn(spec: HeadSpec, train: Rows, val: Rows, weights: torch.Tensor) -> FittedHead:
    """The bank is the training images as the device sees them; how many vote, and how, is chosen by leaving each one out."""
    count, width = train.features.shape
    votes = F.one_hot(torch.from_numpy(train.labels), len(weights)) * weights
    directions = Directions(width)
    directions.centre.copy_(torch.from_numpy(train.features.mean(axis=0)))
    bank = directions(torch.from_numpy(train.features))
    neighbours, temperature, accuracy = choose_votes(bank, votes, groups=train.groups)
    spec = spec.model_copy(update={"bank": count, "neighbours": neighbours, "temperature": temperature})
    adapter = NearestNeighbours(width, len(weights), spec)
    adapter.directions.centre.copy_(directions.centre)
    adapter.bank.copy_(bank)
    adapter.votes.copy_(votes)
    scale = _choose_scale(
        torch.cat([adapter(rows) for rows in torch.split(torch.from_numpy(val.features), BLOCK)]), torch.from_numpy(val.labels)
    )
    # The shares' mean is taken off: exporters leave out a bias of zeros, and the head's refitting needs one.
    head = _linear(scale * torch.eye(len(weights)), torch.full((len(weights),), -scale / len(weights)))
    return FittedHead(spec, adapter.eval(), head, accuracy)


def choose_votes(bank: torch.Tensor, votes: torch.Tensor, *, groups: NDArray[np.int64] | None = None) -> tuple[int, float, float]:
    """Choose the number of neighbors and the temperature by leave-one-out accuracy on the training images; of equals, more neighbors.

    Args:
        bank: float32 ``[n, width]`` of length 1.
        votes: ``[n, classes]``; a class whose votes weigh more counts more here too.
        groups: int64 ``[n]``: images of one number are no neighbors of each other.

    Returns:
        Number of neighbors, temperature, and accuracy.
    """
    count = len(bank)
    near, places = _nearest_others(bank, min(NEIGHBOURS[0] + 1, count - 1), groups)
    importance, labels = votes.max(dim=1).values, votes.argmax(dim=1)
    best, most, accuracy = (1, USUAL_TEMPERATURE), -1.0, 0.0
    for neighbours, temperature in itertools.product(NEIGHBOURS, TEMPERATURES):
        if neighbours + 1 > near.shape[1]:
            continue
        parts = zip(torch.split(near[:, : neighbours + 1], BLOCK), torch.split(places[:, :neighbours], BLOCK), strict=True)
        found = [shares(part, votes[where], temperature).argmax(dim=1) for part, where in parts]
        right = torch.cat(found) == labels
        score = float((right * importance).sum() / importance.sum())
        if score > most:
            best, most, accuracy = (neighbours, temperature), score, float(right.float().mean())
    return *best, accuracy


def _nearest_others(bank: torch.Tensor, count: int, groups: NDArray[np.int64] | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Similarities and places ``[n, count]`` of each image's nearest others, of other groups."""
    found = []
    numbers = torch.arange(len(bank)) if groups is None else torch.from_numpy(groups)
    for start in range(0, len(bank), BLOCK):
        alike = bank[start : start + BLOCK] @ bank.T
        alike[numbers[start : start + BLOCK, None] == numbers[None]] = -2.0  # itself, and its group
        found.append(alike.topk(count, dim=1))
    return torch.cat([item.values for item in found]), torch.cat([item.indices for item in found])


def _choose_scale(votes: torch.Tensor, truth: torch.Tensor) -> float:
    """Under which ``softmax(scale * shares)`` has the lowest log-loss: it changes scores, never answers."""
    scales = np.geomspace(1.0, 100.0, 60)
    losses = [float(F.cross_entropy(float(scale) * votes, truth)) for scale in scales]
    return float(scales[int(np.argmin(losses))])


def _linear(weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    head = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    return head.requires_grad_(False)
