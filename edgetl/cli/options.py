"""Command-line options, generated from configuration models: name, type, default, bounds and help text."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import typer
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from edgetl.cli.session import numbers
from edgetl.core.config import Model, StrictModel
from edgetl.core.options import METAVAR, PANEL, Option, nested, options
from edgetl.errors import ConfigError, MissingExtraError

Command = TypeVar("Command", bound=Callable[..., None])

# Numbers that also accept the word auto.
OR_AUTO = ("epochs",)
ENVIRONMENT = {"weights_dir": "EDGETL_WEIGHTS", "trust": "EDGETL_TRUST"}


def options_of(model: type[StrictModel], *, only: tuple[str, ...] = (), without: tuple[str, ...] = ()) -> Callable[[Command], Command]:
    """Decorate a command with one option for each leaf of ``model`` (``edgetl.core.options``).

    The last parameter of the command is ``**values``. Several decorators can follow each other. Lists stay text here; ``given`` converts
    them, and the model validates all options together.

    Args:
        model: configuration model.
        only: names of the options of the command. Empty means all.
        without: names of options to leave out.
    """

    def add(command: Command) -> Command:
        own = [item for item in inspect.signature(command, eval_str=True).parameters.values() if item.kind is not item.VAR_KEYWORD]
        offered = [option for name, option in options(model).items() if name not in without and (not only or name in only)]
        parameters = own + [_parameter(option) for option in offered]
        required = [item for item in parameters if item.default is item.empty]
        ordered = required + [item for item in parameters if item.default is not item.empty]
        command.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]
        command.__annotations__ = {item.name: item.annotation for item in ordered}
        return command

    return add


def given(model: type[StrictModel], context: typer.Context, values: dict[str, Any]) -> dict[str, Any]:
    """Return the options that the user gave on the command line or in the environment, converted for ``model``: ``224,224`` to a pair.

    Defaults are left out, because the model has its own. A given value that equals the default must override a recipe.
    """
    known, found = options(model), {}
    for name, value in values.items():
        source = context.get_parameter_source(name)
        # Compared by name: depending on its version, typer has its own copy of this enum of click.
        if source is None or source.name not in ("COMMANDLINE", "ENVIRONMENT"):
            continue
        count = _length(known[name].field.annotation)
        found[name] = (
            _numbers(value, count, name) if count and isinstance(value, str) else tuple(value) if isinstance(value, list) else value
        )
    return found


def part(model: type[StrictModel], values: dict[str, Any]) -> dict[str, Any]:
    """Return the values that are options of ``model``, for a command with the options of several models."""
    return {name: value for name, value in values.items() if name in options(model)}


def _numbers(text: str, count: int, name: str) -> tuple[float, ...] | None:
    """Return ``count`` numbers. Two are integers (height and width), and a single one is used for both."""
    found = numbers(f"{text},{text}" if count == 2 and text.isdigit() else text, count, f"--{name.replace('_', '-')}")
    return tuple(int(number) for number in found) if found and count == 2 else found


def build(model: type[Model], **values: Any) -> Model:
    """Return the configuration with these options, by their flat names. All mistakes are reported together.

    Raises:
        ConfigError: an option is invalid. The message names each one.
    """
    try:
        return model.model_validate(nested(model, values))
    except ValidationError as error:
        raise ConfigError(explain(model, error)) from error


def explain(model: type[StrictModel], error: ValidationError) -> str:
    """Return all mistakes of a configuration as text, each with its option."""
    names = {f"{option.group}.{option.leaf}".strip("."): name for name, option in options(model).items()}
    found: dict[str, None] = {}
    for item in error.errors():
        loc = [str(part) for part in item["loc"]]
        name = names.get(".".join(loc[:2])) or names.get(loc[0]) or ".".join(loc)
        found[f"--{name.replace('_', '-')}: {_mistake(name, item)}"] = None
    return "; ".join(found) + "."


def _mistake(name: str, item: ErrorDetails) -> str:
    """Return one mistake as text, such as ``must be at most 0.5, but is 0.9``."""
    bounds = {"greater_than": "greater than", "greater_than_equal": "at least", "less_than": "less than", "less_than_equal": "at most"}
    context = item.get("ctx", {})
    if item["type"] == "value_error":
        return str(context["error"])
    if item["type"] in bounds:
        (limit,) = context.values()
        return f"must be {bounds[item['type']]} {limit:g}, but is {item['input']}"
    if item["type"] in ("int_parsing", "int_type", "float_parsing", "float_type"):
        kind = "an integer" if item["type"].startswith("int") else "a number"
        return f"must be {kind}{' or auto' if name in OR_AUTO else ''}, but is {item['input']}"
    return item["msg"]


def need_extra(extra: str) -> None:
    """Check that the libraries of ``extra`` are installed, before any work.

    Raises:
        MissingExtraError: a library is missing. The message contains the pip command.
    """
    libraries = {
        "train": ("torch", "torchvision", "timm", "lightning_fabric", "sklearn", "matplotlib"),
        "export": ("torch", "onnx", "onnxscript", "nncf"),
    }
    for library in libraries[extra]:
        if find_spec(library) is None:
            raise MissingExtraError(library, extra)


def _parameter(option: Option) -> inspect.Parameter:
    field = option.field
    extra: dict[str, Any] = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    flag = (f"--{option.name.replace('_', '-')}",) if field.default is False else ()  # without a --no- form
    kind = str | None if option.name in OR_AUTO else _kind(field.annotation)
    shown = typer.Option(
        *flag,
        help=field.description,
        rich_help_panel=extra.get(PANEL),
        envvar=ENVIRONMENT.get(option.name),
        metavar=extra.get(METAVAR) or _metavar(field.annotation),
        autocompletion=_completion(field.annotation),
    )
    default = list(field.default) if isinstance(field.default, tuple) else field.default
    return inspect.Parameter(option.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=Annotated[kind, shown])


def _kind(annotation: Any) -> Any:
    """Return the type that typer parses: a choice for a ``Literal``, text for words and lists of numbers, a list for repeated options."""
    plain = _without_none(annotation)
    if get_args(plain)[1:] == (...,):
        return list[str]
    kind = plain if plain in (int, float, bool, str) or get_origin(plain) is Literal else str
    return kind | None if type(None) in get_args(annotation) else kind


def _metavar(annotation: Any) -> str | None:
    """Return the placeholder of the value in ``--help``; flags have none."""
    plain = _without_none(annotation)
    if plain is bool:
        return None
    if get_origin(plain) is Literal:
        return "CHOICE"
    if count := _length(annotation):
        return ",".join(["N"] * count)
    return {int: "INT", float: "FLOAT", Path: "PATH"}.get(plain, "TEXT")


def _completion(annotation: Any) -> Callable[[str], list[str]] | None:
    """Return the shell completion of a list with fixed values. It completes the word after the last comma."""
    item = get_args(_without_none(annotation))[:1]
    known = get_args(item[0]) if item and get_origin(item[0]) is Literal else ()
    if not known or get_origin(_without_none(annotation)) is not tuple:
        return None

    def complete(incomplete: str) -> list[str]:
        before, comma, _ = incomplete.rpartition(",")
        return [f"{before}{comma}{value}" for value in known if value not in before.split(",")]

    return complete


def _without_none(annotation: Any) -> Any:
    found = [item for item in get_args(annotation) if item is not type(None)]
    plain = found[0] if type(None) in get_args(annotation) and len(found) == 1 else annotation
    return get_args(plain)[0] if get_origin(plain) is Annotated else plain


def _length(annotation: Any) -> int:
    """Return the number of values of an option such as ``224,224``, or 0 for single values and repeated options."""
    plain = _without_none(annotation)
    return len(get_args(plain)) if get_origin(plain) is tuple and ... not in get_args(plain) else 0
