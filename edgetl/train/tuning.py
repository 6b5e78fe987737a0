"""Fine-tuning by gradient steps from a fitted head (LP-FT: Kumar et al. 2022, arXiv:2202.10054), resumable at any step."""

from __future__ import annotations

import copy
import logging
import math
import tempfile
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from timm.utils import ModelEmaV3
from torch import nn

from edgetl.core.progress import Progress
from edgetl.data.split import Splits
from edgetl.errors import StoppedError, TrainingError
from edgetl.train.activations import Workplace, cache_activations
from edgetl.train.augment import make_augmentation, mirrors_well
from edgetl.train.backbones import Backbone
from edgetl.train.budget import Plan
from edgetl.train.checkpoints import Checkpoints, State
from edgetl.train.config import TrainConfig
from edgetl.train.dataset import draw_seed, training_batches, validation_batches
from edgetl.train.stages import HEAD, STEM, Stage, choose_stages, find_stages, set_trainable
from edgetl.train.stopping import StopRequest

_log = logging.getLogger(__name__)

WARM_UP_SHARE = 0.1
CLIP_NORM = 1.0
VALIDATIONS = 20
# Steps over which the loss is averaged to judge it, and before it is judged at all.
LOSS_MEMORY = 20
# A smoothed loss above this many times that of answering at random has diverged.
DIVERGED = 5.0

Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]


@dataclass
class History:
    """What a training has seen so far.

    Attributes:
        rows: figures of each validation.
        best_loss: the lowest validation loss.
        best: the weights that had it.
        waited: validations since.
        recent: smoothed loss of the last steps.
        right, seen, lost: training images answered rightly, all of them, and the sum of losses since the last validation.
        seconds: of all calls together.
        head_penalty: of the probe that fitted the head.
    """

    rows: list[dict[str, float]] = field(default_factory=list)
    best_loss: float = math.inf
    best: dict[str, torch.Tensor] = field(default_factory=dict)
    waited: int = 0
    recent: float | None = None
    right: float = 0.0
    seen: float = 0.0
    lost: float = 0.0
    seconds: float = 0.0
    head_penalty: float | None = None


def tune(
    backbone: Backbone,
    splits: Splits,
    plan: Plan,
    config: TrainConfig,
    place: Workplace,
    *,
    checkpoints: Checkpoints | None = None,
    head_penalty: float | None = None,
) -> History:
    """Train ``backbone.model`` in place and leave it with the weights that had the lowest validation loss.

    Args:
        backbone: with a fitted head, unless it is trained from random weights.
        splits: ``train`` teaches, ``val`` chooses.
        plan: what to do.
        config: batch size, seed, patience.
        place: device, folder for temporary files, and who is told of each step.
        checkpoints: where the state is saved, and taken up again if there is one.
        head_penalty: of the probe that fitted the head, for the record.

    Raises:
        TrainingError: the loss became infinite, not a number, or much larger than that of answering at random.
        StoppedError: the process was asked to end; the state is saved.
    """
    # Lightning sets its own level and handler when it is imported; what it says there is not about the user's images.
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    L.seed_everything(config.seed, verbose=False)
    stages = find_stages(backbone.model, backbone.head_name)
    trained = choose_stages(stages, plan.unfreeze)
    state = checkpoints.newest() if checkpoints else None
    steps = range(state.step if state else 0, plan.steps)
    with StopRequest() as stop, tempfile.TemporaryDirectory(dir=place.folder, prefix="activations-") as folder:
        inside = replace(place, folder=Path(folder))
        taught, train, val = _prepare(backbone, trained, splits, plan, config, steps=steps, place=inside)
        module = Tuning(taught, trained, plan, config.seed)
        history = module.restore(state) if state else History(head_penalty=head_penalty)
        if state:
            _log.info("going on after step %d of %d", state.step, plan.steps)
        watch = _Watch(module, history, val, config, progress=place.progress, checkpoints=checkpoints, stop=stop)
        _fit(module, train, watch, place.device)
    if not history.best:
        raise TrainingError("the validation loss was never finite; lower --lr, or check the images with `edgetl evaluate`.")
    backbone.model.load_state_dict({**backbone.model.cpu().state_dict(), **history.best})
    set_trainable(backbone.model, stages, freeze_batchnorm=False)
    backbone.model.eval()
    return history


def _prepare(
    backbone: Backbone, trained: tuple[Stage, ...], splits: Splits, plan: Plan, config: TrainConfig, *, steps: range, place: Workplace
) -> tuple[Backbone, Batches, Batches]:  # fmt: skip
    """What is trained, its training batches, and the validation batches: of activations where the frozen half can be run ahead."""
    flip = mirrors_well(splits.folder.labels) if config.flip is None else config.flip
    augment = make_augmentation(plan.augment, backbone.spec, flip=flip)
    if config.cache_views and plan.strategy == "partial" and trained[0].name != STEM and steps:
        cached = cache_activations(backbone, trained, splits, augment, config, steps=steps, place=place)
        if cached:
            return cached.backbone, cached.train, cached.val
    train = training_batches(splits.train, backbone.spec, augment, config, steps=steps)
    return backbone, train, validation_batches(splits.val or splits.train, backbone.spec, config)


def _fit(module: Tuning, batches: Batches, watch: Callback, device: str) -> None:
    trainer = L.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=1,
        precision="bf16-mixed" if device == "cuda" else "32-true",  # half precision pays on a GPU only
        max_epochs=1,
        gradient_clip_val=CLIP_NORM,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[watch],
    )
    with warnings.catch_warnings():
        # Lightning's hints about loader processes and logging intervals concern choices that were made on purpose.
        warnings.filterwarnings("ignore", module=r"lightning\..*")
        warnings.filterwarnings("ignore", message=r".*(does not have many workers|LeafSpec|pin_memory).*")
        trainer.fit(module, batches)


def parameter_groups(model: nn.Module, stages: Sequence[Stage], plan: Plan) -> list[dict[str, Any]]:
    """Optimizer groups, two a stage, each with a learning rate of its own in ``lr``.

    timm's ``lr_scale`` would be ignored by torch's optimizers. From the trunk's last stage (``top_lr``) the rate falls geometrically to
    ``top_lr * lr_ratio`` at the lowest stage of ``stages``: a fixed factor a stage would mean another end for each depth. One-dimensional
    parameters (norms, biases) get no weight decay.

    Args:
        model: the network.
        stages: those that ever train, the head last.
        plan: the rates.
    """
    named = dict(model.named_parameters())
    trunk = [stage for stage in stages if stage.name != HEAD]
    groups = []
    for stage in stages:
        if stage.name == HEAD:
            lr = plan.head_lr
        else:
            lr = plan.top_lr * plan.lr_ratio ** ((len(trunk) - 1 - trunk.index(stage)) / max(1, len(trunk) - 1))
        for decays in (True, False):
            parameters = [named[name] for name in stage.parameters if (named[name].ndim > 1) == decays]
            if parameters:
                decay = plan.weight_decay if decays else 0.0
                groups.append({"params": parameters, "lr": lr, "weight_decay": decay, "stage": stage.name})
    return groups


class Tuning(L.LightningModule):
    """Cross-entropy with label smoothing, AdamW, linear warm-up and cosine decay by step, over the stages that a plan lets learn."""

    def __init__(self, backbone: Backbone, trained: tuple[Stage, ...], plan: Plan, seed: int) -> None:
        super().__init__()
        self.model = backbone.model.train()  # Lightning leaves each module in the mode that it finds
        self.plan = plan
        self.seed = seed
        self.first = 0
        self.classes = backbone.head.out_features
        self.trained = trained
        self.average = ModelEmaV3(self.model, decay=plan.average) if plan.average else None
        self.loss = nn.CrossEntropyLoss(label_smoothing=plan.label_smoothing)
        self.moments: dict[str, torch.Tensor] = {}
        self.last: tuple[float, float] = (0.0, 0.0)

    @property
    def step(self) -> int:
        """Optimizer steps done, those before a resumption too."""
        return self.first + self.global_step

    def trained_at(self, step: int) -> tuple[Stage, ...]:
        """The stages that learn at ``step``: in ``progressive`` the head alone at first, then one more in each equal interval."""
        if self.plan.strategy != "progressive":
            return self.trained
        trunk = len(self.trained) - 1
        opened = min(trunk, step * (trunk + 1) // max(1, self.plan.steps))
        return self.trained[trunk - opened :]

    def on_train_batch_start(self, *_: Any) -> None:
        """Freeze what is not to change at this step, running statistics too."""
        set_trainable(self.model, self.trained_at(self.step), freeze_batchnorm=self.plan.freeze_batchnorm)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
        """One step's loss."""
        images, labels = batch
        torch.manual_seed(draw_seed(self.seed, self.step))  # dropout does not depend on where a training was resumed
        if images.is_cuda:
            images = images.contiguous(memory_format=torch.channels_last)
        logits = self.model(images)
        loss: torch.Tensor = self.loss(logits, labels)
        self.last = float((logits.detach().argmax(dim=1) == labels).sum()), float(len(labels))
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW over explicit groups, and a schedule by step."""
        groups = parameter_groups(self.model, self.trained, self.plan)
        optimizer = torch.optim.AdamW([{key: value for key, value in group.items() if key != "stage"} for group in groups])
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(self.first + step, self.plan.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """Give a resumed optimizer its moments back."""
        optimizer = self.trainer.optimizers[0]
        for index, parameter in enumerate(_parameters(optimizer)):
            names = ("step", "exp_avg", "exp_avg_sq")
            found = {name: self.moments[key] for name in names if (key := f"optimizer.{index}.{name}") in self.moments}
            if found:
                optimizer.state[parameter] = {
                    name: value if name == "step" else value.to(parameter.device) for name, value in found.items()
                }

    def state(self, history: History) -> State:
        """All that a later call needs to go on."""
        tensors = {f"model.{key}": value for key, value in self.model.state_dict().items()}
        if self.average is not None:
            tensors |= {f"average.{key}": value for key, value in self.average.module.state_dict().items()}
        tensors |= {f"best.{key}": value for key, value in history.best.items()}
        for index, parameter in enumerate(_parameters(self.trainer.optimizers[0])):
            tensors |= {f"optimizer.{index}.{name}": value for name, value in self.trainer.optimizers[0].state[parameter].items()}
        facts = {key: value for key, value in vars(history).items() if key != "best"}
        copies = {key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}
        return State(self.step, copies, facts)

    def restore(self, state: State) -> History:
        """Take up ``state``."""
        parts: dict[str, dict[str, torch.Tensor]] = {"model": {}, "average": {}, "best": {}, "optimizer": {}}
        for key, value in state.tensors.items():
            kind, _, name = key.partition(".")
            parts[kind][key if kind == "optimizer" else name] = value
        self.model.load_state_dict(parts["model"])
        if self.average is not None:
            self.average.module.load_state_dict(parts["average"])
        self.moments, self.first = parts["optimizer"], state.step
        return History(best=parts["best"], **state.facts)


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def warm_cosine(step: int, steps: int) -> float:
    """Factor of the learning rate: linear over the first tenth of the steps, then half a cosine to 0."""
    warm = max(1, round(steps * WARM_UP_SHARE))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, steps - warm))))


class _Watch(Callback):
    """After each step: average, judge the loss, validate now and then, save, report, and stop when asked to."""

    def __init__(
        self, module: Tuning, history: History, val: Batches, config: TrainConfig, *,
        progress: Progress, checkpoints: Checkpoints | None, stop: StopRequest,
    ) -> None:  # fmt: skip
        self.module = module
        self.history = history
        self.val = val
        self.config = config
        self.progress = progress
        self.checkpoints = checkpoints
        self.stop = stop
        steps = module.plan.steps
        self.interval = max(1, math.ceil(steps / VALIDATIONS))
        self._saved = self._resumed = time.monotonic()
        self._seconds_before = history.seconds

    def on_train_start(self, *_: Any) -> None:
        """Begin to listen for SIGTERM."""
        self.stop.install()

    def on_train_batch_end(self, trainer: L.Trainer, _module: L.LightningModule, outputs: Any, *_: Any) -> None:
        module, plan = self.module, self.module.plan
        step = module.step
        if module.average is not None:
            module.average.update(module.model)
        self._judge(float(outputs["loss"]), step)
        self.progress("fine-tuning", step, plan.steps)
        due = step % self.interval == 0 or step == plan.steps
        if due:
            self._validate(step)
        ended = step == plan.steps or self.history.waited >= self.config.patience
        if self.checkpoints and (due or self.stop.asked or time.monotonic() - self._saved > self.config.checkpoint_s) and not ended:
            self._save()
        if self.stop.asked:
            raise StoppedError(f"stopped after step {step} of {plan.steps}, as asked. The same command with --resume goes on from there.")
        trainer.should_stop = ended

    def _judge(self, loss: float, step: int) -> None:
        """Add up the training's figures, and end it when it diverged."""
        right, count = self.module.last
        history = self.history
        history.right, history.seen, history.lost = history.right + right, history.seen + count, history.lost + loss * count
        history.recent = loss if history.recent is None else history.recent + (loss - history.recent) / LOSS_MEMORY
        chance = math.log(max(2, self.module.classes))
        if not math.isfinite(loss) or (step > LOSS_MEMORY and history.recent > DIVERGED * chance):
            said = f"{loss:.3g}" if math.isfinite(loss) else str(loss)
            kept = " The best weights so far are in the checkpoint." if self.checkpoints and history.best else ""
            raise TrainingError(
                f"training diverged: the loss was {said} at step {step}, and answering at random costs {chance:.2f}. "
                f"Lower --lr (now {self.module.plan.head_lr:g}) or use --strategy probe.{kept}"
            )

    def _validate(self, step: int) -> None:
        """Loss (without smoothing) and accuracy on the validation images, by the averaged weights where there are any."""
        judged = self.module.model if self.module.average is None else self.module.average.module
        device = next(judged.parameters()).device
        modes = [module.training for module in judged.modules()]
        judged.eval()
        lost = right = count = 0.0
        with torch.inference_mode():
            for images, labels in self.val:
                logits, truth = judged(images.to(device)), labels.to(device)
                lost += float(nn.functional.cross_entropy(logits, truth, reduction="sum"))
                right += float((logits.argmax(dim=1) == truth).sum())
                count += len(labels)
        for module, mode in zip(judged.modules(), modes, strict=True):
            module.training = mode
        history = self.history
        seen = max(1.0, history.seen)
        figures = {"train_loss": history.lost / seen, "train_accuracy": history.right / seen}
        history.rows.append({"step": step, **figures, "val_loss": lost / count, "val_accuracy": right / count})
        history.lost = history.right = history.seen = 0.0
        if lost / count < history.best_loss:
            history.best_loss, history.waited = lost / count, 0
            history.best = copy.deepcopy({key: value.detach().cpu() for key, value in judged.state_dict().items()})
        else:
            history.waited += 1

    def _save(self) -> None:
        assert self.checkpoints is not None
        self.history.seconds = self._seconds_before + time.monotonic() - self._resumed
        self.checkpoints.save(self.module.state(self.history))
        self._saved = time.monotonic()
