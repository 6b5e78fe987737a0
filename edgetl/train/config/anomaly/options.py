"""Options of ``edgetl train --task anomaly``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Literal

from edgetl.core.config import StrictModel
from edgetl.core.options import option_field
from edgetl.errors import ConfigError

_anomaly = partial(option_field, panel="Anomaly detection")
# Other options that have an effect on anomaly detection, by flat name.
USED = frozenset(
    (
        "backbone weights weights_dir license license_policy input_size mean std crop_pct interpolation resize task val test "
        "near_duplicates allow_leakage include exclude intensity strategy batch_size seed device false_alarms anomalies"
    ).split()
)


class AnomalyConfig(StrictModel):
    """Anomaly detection options: threshold, and kind of anomalies."""

    false_alarms: float = _anomaly(
        0.01, "Rate of false alarms on normal images, 0..1. Validation images choose the threshold. 0.01 needs 99 of them.", gt=0.0, lt=1.0
    )
    anomalies: Literal["all", "defects"] = _anomaly(
        "all",
        "Kind of anomalies. all: small defects, and images of other content. defects: small defects only, in a smaller network.",
    )


def anomaly_conflicts(given: Iterable[str], *, anomaly: bool, strategy: str, pretrained: bool) -> Iterator[str]:
    """Yield a message for each conflict of options with the task.

    Args:
        given: flat names of the options that were given.
        anomaly: True if the task is anomaly detection.
        strategy: value of ``--strategy``.
        pretrained: True if the backbone has pretrained weights.
    """
    names = sorted(given)
    if not anomaly:
        if unused := [f"--{_dashed(name)}" for name in names if name in AnomalyConfig.model_fields]:
            yield f"{' and '.join(unused)} needs --task anomaly"
        return
    unused = [f"--{_dashed(name)}" for name in names if name not in USED and name != "pretrained"]
    if strategy not in ("auto", "probe"):
        unused.append(f"--strategy {strategy}")
    if unused:
        yield (
            f"--task anomaly fits distances to normal images on frozen features, so {', '.join(unused)} cannot be combined with it. Remove "
            f"{'them' if len(unused) > 1 else 'it'}"
        )
    if not pretrained:
        yield "--task anomaly needs pretrained weights. Remove --random-weights"


def refuse_anomaly(task: str | None, reason: str) -> None:
    """Refuse anomaly detection in a command that does not support it.

    Raises:
        ConfigError: ``task`` is ``anomaly``.
    """
    if task == "anomaly":
        raise ConfigError(f"--task anomaly is only for edgetl train, because {reason}. Remove it.")


def _dashed(name: str) -> str:
    return name.replace("_", "-")
