"""Options of a configuration: the leaves of nested pydantic models under flat names, as the command line shows them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, Field, JsonValue
from pydantic.fields import FieldInfo

# Keys of a field's ``json_schema_extra``: the panel of ``--help``, and the option's name where it is not the field's.
PANEL, OPTION, METAVAR = "panel", "option", "metavar"
# Panel of the options that most users set.
COMMON = "Common options"


@dataclass(frozen=True)
class Option:
    """A leaf of a configuration model.

    Attributes:
        name: flat and unique in the model, such as ``backbone_lr``.
        group: field of the model that holds the leaf's group; empty for a leaf of the model itself.
        leaf: field of the group.
        field: type, default, bounds and help.
    """

    name: str
    group: str
    leaf: str
    field: FieldInfo


def option_field(
    default: Any, description: str, *, option: str | None = None, panel: str | None = None, metavar: str | None = None, **bounds: Any
) -> Any:
    """Field of a configuration model with the help of its option.

    Args:
        default: default value.
        description: text of ``--help``.
        option: name of the option, if it differs from the field's name.
        panel: panel of ``--help``.
        metavar: placeholder of the value in ``--help``, such as ``PATH``; by default it follows from the type.
        bounds: arguments of ``pydantic.Field``, such as ``ge``.
    """
    named = ((OPTION, option), (PANEL, panel), (METAVAR, metavar))
    extra: dict[str, JsonValue] = {key: value for key, value in named if value is not None}
    return Field(default, description=description, json_schema_extra=extra or None, **bounds)


def words(value: object) -> object:
    """Validator: ``a,b`` and repeated options become a tuple of words, each once."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple):
        return value
    return tuple(dict.fromkeys(word.strip() for item in items for word in str(item).split(",") if word.strip()))


def options(model: type[BaseModel]) -> dict[str, Option]:
    """The options of ``model`` by name, in the order of the fields; groups are fields that are models themselves.

    Raises:
        ValueError: two leaves have one name.
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
    """Values by option name as ``model`` takes them; unknown names are passed on, so that the model reports them."""
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
    """Values of ``config`` by option name; ``only_given`` leaves out those that are defaults because nobody gave them."""
    found = {}
    for name, option in options(type(config)).items():
        holder = getattr(config, option.group) if option.group else config
        if not only_given or option.leaf in holder.model_fields_set:
            found[name] = getattr(holder, option.leaf)
    return found
