"""Network of an update: the run's network with outputs for the new classes."""

from __future__ import annotations

import dataclasses

from edgetl.errors import ConfigError
from edgetl.train.artifacts.record import WEIGHTS_NAME
from edgetl.train.artifacts.run import Run
from edgetl.train.heads.linear import LinearHead
from edgetl.train.heads.modules import rebuild_headed
from edgetl.train.networks.backbone import Backbone


def check_updatable(run: Run) -> None:
    """Check that the head of a run can be fitted again with more classes.

    Raises:
        ConfigError: the task is not classification, or the network has a k-NN head or progressive columns.
    """
    record = run.record
    if record.task != "classification":
        raise ConfigError(f"{run.path} is a run for {record.task}. Only a classification can be updated. Train again with all images.")
    if record.head.kind == "knn" or record.backbone.columns is not None:
        kind = "a k-NN head" if record.head.kind == "knn" else "progressive columns"
        raise ConfigError(f"{run.path} has {kind}, and an update needs one network with a linear last layer. Train again with all images.")


def widen(run: Run, classes: int) -> Backbone:
    """Return the run's network with ``classes`` outputs, and with the run among its parents. The new head is not fitted.

    Raises:
        RunError: the weights are damaged.
        BackboneError: the installed library does not have the architecture.
    """
    record, old = run.record, run.record.backbone
    model = run.load_model()
    wider = rebuild_headed(old.architecture, dict(old.model_args), record.head, classes)
    kept = {name: value for name, value in model.state_dict().items() if not name.startswith(f"{old.head_name}.")}
    wider.load_state_dict({**wider.state_dict(), **kept})
    return dataclasses.replace(
        run.backbone(wider.eval()),
        name=str(run.path),
        weights_sha256=record.files[WEIGHTS_NAME],
        parents=(*old.parents, run.as_parent()),
    )


def head_of_run(run: Run) -> LinearHead:
    """Return the last layer of a run's network."""
    layer = run.backbone().head
    return LinearHead(layer.weight.detach().numpy(), layer.bias.detach().numpy(), run.record.head_penalty or 0.0, ())
