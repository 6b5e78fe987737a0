"""Test helpers: training plans and prepared networks of a configuration."""

from torch import nn

from edgetl.data.split import Splits
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.plan import Plan, TrainingJob, make_plan, planned_strategy
from edgetl.train.config.recipe import with_recipe
from edgetl.train.config.resolve import resolve
from edgetl.train.networks.backbone import Backbone, find_head
from edgetl.train.workflows.finetune import network_facts, prepare


def plan_of(config: TrainConfig, images: int, model: nn.Module) -> Plan:
    """Make the training plan of a classification task with ``images`` distinct training images."""
    resolved, recipe = with_recipe(config)
    strategy, reason = planned_strategy(resolved.optim.strategy, images, pretrained=resolved.backbone.pretrained)
    return make_plan(TrainingJob(resolved, recipe, "classification", images, strategy, reason), network_facts(model, find_head(model)))


def prepared(splits: Splits, config: TrainConfig) -> tuple[Backbone, Plan]:
    """Return the network before training, and the training plan."""
    return prepare(splits, resolve(config, splits))
