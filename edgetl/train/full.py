"""Fine-tuning of every layer from a fitted head (LP-FT: Kumar et al. 2022, arXiv:2202.10054)."""

from __future__ import annotations

import copy
import logging
import math
import warnings
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchmetrics.classification import MulticlassAccuracy

from edgetl.core.progress import Progress
from edgetl.data.split import Splits
from edgetl.errors import TrainingError
from edgetl.train.backbones import Backbone
from edgetl.train.config import TrainConfig
from edgetl.train.dataset import loaders

WARM_UP_SHARE = 0.1
MIN_EPOCHS = 10
MIN_STEPS = 300
# Below these, a batch says less about the data than the pretrained running statistics do.
MIN_BATCH_FOR_BATCHNORM = 16
MIN_IMAGES_FOR_BATCHNORM = 1000


@dataclass
class History:
    """One row of figures for each epoch."""

    rows: list[dict[str, float]] = field(default_factory=list)


def tune_all(backbone: Backbone, splits: Splits, config: TrainConfig, *, device: str, progress: Progress) -> History:
    """Train ``backbone.model`` in place and leave it with the weights of the epoch that had the lowest validation loss.

    Raises:
        TrainingError: the loss became infinite or not a number.
    """
    # Lightning sets its own level and handler when it is imported; what it says there is not about the user's images.
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    L.seed_everything(config.seed, verbose=False)
    train, val = loaders(splits.train, splits.val or splits.train, backbone.spec, config)
    epochs = config.epochs or max(MIN_EPOCHS, math.ceil(MIN_STEPS / max(1, len(train))))
    freeze = config.pretrained and (config.batch_size < MIN_BATCH_FOR_BATCHNORM or len(splits.train) < MIN_IMAGES_FOR_BATCHNORM)
    module = FineTuning(backbone, config, steps=epochs * len(train), classes=len(splits.folder.labels), freeze_batchnorm=freeze)
    best = BestWeights()
    history = History()
    reports = _Report(history, progress, epochs * len(train))
    trainer = _trainer(epochs, device, [best, reports, EarlyStopping("val_loss", patience=config.patience, mode="min")])
    with warnings.catch_warnings():
        # Lightning's hints about loader processes and logging intervals concern choices that were made on purpose.
        warnings.filterwarnings("ignore", module=r"lightning\..*")
        warnings.filterwarnings("ignore", message=r".*(does not have many workers|LeafSpec|pin_memory).*")
        trainer.fit(module, train, val)
    if best.state is None:
        raise TrainingError("the validation loss was never finite; lower --lr, or check the images with `edgetl evaluate`.")
    backbone.model.load_state_dict(best.state)
    backbone.model.to("cpu").eval()
    return history


def _trainer(epochs: int, device: str, callbacks: list[Callback]) -> L.Trainer:
    """A trainer that writes nothing by itself; half precision pays on a GPU only."""
    return L.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=1,
        precision="bf16-mixed" if device == "cuda" else "32-true",
        max_epochs=epochs,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=callbacks,
    )


def parameter_groups(model: nn.Module, head_name: str, *, lr: float, ratio: float, weight_decay: float) -> list[dict[str, Any]]:
    """Optimizer groups with an explicit learning rate each.

    The rate falls geometrically from ``lr`` for the head to ``lr * ratio`` for the first layer: a fixed factor a layer would mean
    another end for each depth. One-dimensional parameters (norms, biases) get no weight decay.

    Args:
        model: the network.
        head_name: its head's name.
        lr: the head's learning rate.
        ratio: the first layer's rate relative to the head's.
        weight_decay: of matrices and kernels.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    stages = list(dict.fromkeys(_stage(name, head_name) for name, _ in named if _stage(name, head_name) != "head"))
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in named:
        groups.setdefault((_stage(name, head_name), parameter.ndim > 1), []).append(parameter)
    depth = len(stages)
    result = []
    for (stage, decays), parameters in groups.items():
        position = depth if stage == "head" else stages.index(stage)
        scale = ratio ** ((depth - position) / depth) if depth else 1.0
        result.append({"params": parameters, "lr": lr * scale, "weight_decay": weight_decay if decays else 0.0, "stage": stage})
    return result


def _stage(name: str, head_name: str) -> str:
    """The stage of a parameter: its first two name parts where the second is a number (``blocks.3``), else the first."""
    if name.startswith(f"{head_name}."):
        return "head"
    parts = name.split(".")
    return ".".join(parts[:2]) if len(parts) > 2 and parts[1].isdigit() else parts[0]


class FineTuning(L.LightningModule):
    """Cross-entropy with label smoothing, AdamW, linear warm-up and cosine decay by step."""

    def __init__(self, backbone: Backbone, config: TrainConfig, *, steps: int, classes: int, freeze_batchnorm: bool) -> None:
        super().__init__()
        self.model = backbone.model
        self.head_name = backbone.head_name
        self.config = config
        self.steps = steps
        self.freeze_batchnorm = freeze_batchnorm
        self.loss = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
        self.accuracy = MulticlassAccuracy(classes, average="micro")
        if freeze_batchnorm:
            for module in self._batchnorms():
                module.requires_grad_(False)

    def _batchnorms(self) -> list[nn.Module]:
        return [module for module in self.model.modules() if isinstance(module, _BatchNorm)]

    def on_train_epoch_start(self) -> None:
        """Keep the running statistics of frozen BatchNorm layers: ``requires_grad`` alone does not stop them."""
        if self.freeze_batchnorm:
            for module in self._batchnorms():
                module.eval()

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
        """One step's loss."""
        images, labels = self._place(batch)
        loss: torch.Tensor = self.loss(self.model(images), labels)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss became {loss.item()} at step {self.global_step}: training diverged. "
                f"Lower --lr (now {self._lr():g}) or use --strategy probe."
            )
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> None:
        """Loss (without smoothing) and accuracy on a batch of validation images."""
        images, labels = self._place(batch)
        logits = self.model(images)
        self.accuracy(logits, labels)
        self.log("val_loss", nn.functional.cross_entropy(logits, labels), batch_size=len(labels))
        self.log("val_accuracy", self.accuracy)

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW over explicit groups, and a schedule by step."""
        ratio = self.config.lr_ratio or (0.1 if self.config.pretrained else 1.0)
        groups = parameter_groups(self.model, self.head_name, lr=self._lr(), ratio=ratio, weight_decay=self.config.weight_decay)
        optimizer = torch.optim.AdamW([{key: value for key, value in group.items() if key != "stage"} for group in groups])
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, self.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _lr(self) -> float:
        return self.config.lr or (1e-3 if self.config.pretrained else 3e-3)

    def _place(self, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = batch
        return (images.contiguous(memory_format=torch.channels_last), labels) if images.is_cuda else (images, labels)


def warm_cosine(step: int, steps: int) -> float:
    """Factor of the learning rate: linear over the first tenth of the steps, then half a cosine to 0."""
    warm = max(1, round(steps * WARM_UP_SHARE))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, steps - warm))))


class BestWeights(Callback):
    """Remembers the weights of the epoch with the lowest validation loss."""

    def __init__(self) -> None:
        self.loss = math.inf
        self.state: dict[str, Any] | None = None

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare and remember."""
        loss = float(trainer.callback_metrics["val_loss"])
        if loss < self.loss:
            assert isinstance(pl_module, FineTuning)
            self.loss, self.state = loss, copy.deepcopy(pl_module.model.state_dict())


class _Report(Callback):
    """Passes steps to the caller's progress and keeps each epoch's figures."""

    def __init__(self, history: History, progress: Progress, steps: int) -> None:
        self.history = history
        self.progress = progress
        self.steps = steps

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.progress("fine-tuning", trainer.global_step, self.steps)

    def on_train_epoch_end(self, trainer: L.Trainer, _: L.LightningModule) -> None:
        figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.history.rows.append({"epoch": trainer.current_epoch, "step": trainer.global_step, **figures})
