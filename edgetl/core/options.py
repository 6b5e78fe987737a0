"""Options of a configuration: flat names for the fields of nested pydantic models. The command line uses them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, Field, JsonValue
from pydantic.fields import FieldInfo

# Keys of a field's ``json_schema_extra``: panel in ``--help``, name of the option if it differs from the field, placeholder.
PANEL, OPTION, METAVAR = "panel", "option", "metavar"
# Panel of the most common options.
COMMON = "Common options"


@dataclass(frozen=True)
class Option:
    """Option of a configuration model.

    Attributes:
        name: flat name, unique in the model, such as ``backbone_lr``.
        group: field of the nested model that has the option; empty for an option of the model itself.
        leaf: field of the option in its model.
        field: type, default, bounds and help.
    """

    name: str
    group: str
    leaf: str
    field: FieldInfo


def option_field(
    default: Any, description: str, *, option: str | None = None, panel: str | None = None, metavar: str | None = None, **bounds: Any
) -> Any:
    """Make a field of a configuration model with the help text of its option.

    Args:
        default: default value.
        description: text of ``--help``.
        option: name of the option, if it differs from the field's name.
        panel: panel of ``--help``.
        metavar: placeholder of the value in ``--help``, such as ``PATH``. The default depends on the type.
        bounds: arguments of ``pydantic.Field``, such as ``ge``.
    """
    named = ((OPTION, option), (PANEL, panel), (METAVAR, metavar))
    extra: dict[str, JsonValue] = {key: value for key, value in named if value is not None}
    return Field(default, description=description, json_schema_extra=extra or None, **bounds)


def words(value: object) -> object:
    """Split ``a,b`` and repeated options into a tuple of distinct words (pydantic validator)."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple):
        return value
    return tuple(dict.fromkeys(word.strip() for item in items for word in str(item).split(",") if word.strip()))


def options(model: type[BaseModel]) -> dict[str, Option]:
    """Return the options of ``model`` by name, in the order of the fields. Fields that are models form groups.

    Raises:
        ValueError: two options have the same name.
    """
    found: dict[str, Option] = {}
    for option in _leaves(model):
        if option.name in found:
            raise ValueError(f"{model.__name__} has two options {option.name}")
        found[option.name] = option
    return found


def _leaves(model: type[BaseModel]) -> Iterator[Option]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from (Option(_name(leaf, inner), name, leaf, inner) for leaf, inner in kind.model_fields.items())
        else:
            yield Option(_name(name, field), "", name, field)


def _name(leaf: str, field: FieldInfo) -> str:
    extra = field.json_schema_extra
    return str(extra.get(OPTION, leaf)) if isinstance(extra, dict) else leaf


def nested(model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert values by option name to the nested form of ``model``. Unknown names are kept: the model's validation reports them."""
    known = options(model)
    found: dict[str, Any] = {}
    for name, value in values.items():
        option = known.get(name)
        if option is None or not option.group:
            found[option.leaf if option else name] = value
        else:
            found.setdefault(option.group, {})[option.leaf] = value
    return found


def flat(config: BaseModel, *, only_given: bool = False) -> dict[str, Any]:
    """Return the values of ``config`` by option name. ``only_given`` leaves out values that were not set explicitly."""
    found = {}
    for name, option in options(type(config)).items():
        holder = getattr(config, option.group) if option.group else config
        if not only_given or option.leaf in holder.model_fields_set:
            found[name] = getattr(holder, option.leaf)
    return found
