"""Command-line options made from a configuration: one place says the name, the default, the bounds and the help."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, TypeVar, get_args, get_origin

import typer

from edgetl.cli.session import numbers
from edgetl.core.config import StrictModel
from edgetl.train.config.options import PANEL

Command = TypeVar("Command", bound=Callable[..., None])

# Numbers that may be the word auto.
OR_AUTO = ("epochs",)
ENVIRONMENT = {"weights_dir": "EDGETL_WEIGHTS"}


def options_of(model: type[StrictModel], *, without: tuple[str, ...] = ()) -> Callable[[Command], Command]:
    """Give a command whose last parameter is ``**options`` one option for each field of ``model``.

    Words stay words and lists stay text here: the model checks them all together (``given``).
    """

    def add(command: Command) -> Command:
        own = [item for item in inspect.signature(command, eval_str=True).parameters.values() if item.kind is not item.VAR_KEYWORD]
        parameters = own + [_parameter(name, field) for name, field in model.model_fields.items() if name not in without]
        required = [item for item in parameters if item.default is item.empty]
        ordered = required + [item for item in parameters if item.default is not item.empty]
        command.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]
        command.__annotations__ = {item.name: item.annotation for item in ordered}
        return command

    return add


def given(model: type[StrictModel], options: dict[str, Any]) -> dict[str, Any]:
    """The options as ``model`` takes them: ``224,224`` becomes a pair."""
    read = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    for name, value in read.items():
        count = _length(model.model_fields[name].annotation)
        if count and isinstance(value, str):
            text = f"{value},{value}" if count == 2 and value.isdigit() else value
            found = numbers(text, count, f"--{name.replace('_', '-')}")
            whole = found is not None and count == 2
            read[name] = tuple(int(number) for number in found) if whole and found else found
    return read


def _parameter(name: str, field: Any) -> inspect.Parameter:
    panel = field.json_schema_extra[PANEL]
    option = typer.Option(help=field.description, rich_help_panel=panel, envvar=ENVIRONMENT.get(name))
    kind: Any = Annotated[str | None if name in OR_AUTO else _kind(field.annotation), option]
    default = list(field.default) if isinstance(field.default, tuple) else field.default
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=kind)


def _kind(annotation: Any) -> Any:
    """Type that typer parses: text for words and lists of numbers, a list for repeated options."""
    plain = _without_none(annotation)
    if get_args(plain)[1:] == (...,):
        return list[str]
    kind = plain if plain in (int, float, bool, str) else str
    return kind | None if type(None) in get_args(annotation) else kind


def _without_none(annotation: Any) -> Any:
    found = [item for item in get_args(annotation) if item is not type(None)]
    plain = found[0] if type(None) in get_args(annotation) and len(found) == 1 else annotation
    return get_args(plain)[0] if get_origin(plain) is Annotated else plain


def _length(annotation: Any) -> int:
    """Number of values of an option such as ``224,224``; 0 for options of one value and for those that may be repeated."""
    plain = _without_none(annotation)
    return len(get_args(plain)) if get_origin(plain) is tuple and ... not in get_args(plain) else 0
