"""Help pages of commands: panels of options, values of choices, defaults, and examples that are not re-wrapped."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Any

import typer
from rich import box
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from edgetl.cli.session import OUTPUT, out
from edgetl.core.options import COMMON

ARGUMENTS, OPTIONS = "Arguments", "Options"
# Panels at the end of the page, in this order.
_LAST = ("Execution", "Distributed training", OUTPUT)

# In an epilog, lines are paragraphs: typer's own page joins single lines.
_PARAGRAPH, _LINE = "\n\n", "\n"
_LABEL_WIDTH = 28
_NOT_ONE_OF = re.compile(r"(?:Value error, )?'(?P<given>.*)' is not one of (?P<known>.*?)\.?$", re.DOTALL)

# Messages of pydantic, which newer versions of typer print.
_PLAIN = {
    "Input should be a valid integer, unable to parse string as an integer": "the value must be an integer",
    "Input should be a valid number, unable to parse string as a number": "the value must be a number",
    "Input should be": "the value must be",
}


class HelpCommand(TyperCommand):
    """Command with the help page of this module."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        for parameter in self.params:
            if parameter.param_type_name == "argument" and parameter.metavar is None:
                parameter.metavar = parameter.name.upper() if parameter.name else None

    def collect_usage_pieces(self, ctx: Any) -> list[str]:  # noqa: ARG002
        """Return ``[OPTIONS]`` and the arguments: ``BUNDLE``, ``[DATA]`` if optional, ``IMAGES...`` if repeated."""
        return ["[OPTIONS]", *(_argument(item) for item in self.params if item.param_type_name == "argument")]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments. The error of a wrong choice suggests the nearest value."""
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            error.message = _plain_message(error.message)
            raise

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        """Print the help page."""
        _print_page(self, ctx)


class HelpGroup(TyperGroup):
    """Group of commands with the help page of this module. The name of a command can have two words."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the name of the command, the command, and its arguments."""
        first = " ".join(args[:2])
        return super().resolve_command(ctx, [first, *args[2:]] if first in self.commands else args)

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        """Print the help page."""
        _print_page(self, ctx)


def _plain_message(message: str) -> str:
    """Return the error of a wrong value in plain words, with the nearest value of a choice."""
    found = _NOT_ONE_OF.match(message)
    if found is None:
        for original, plain in _PLAIN.items():
            message = message.replace(original, plain)
        return message
    known = re.findall(r"'([^']*)'", found["known"])
    nearest = get_close_matches(found["given"], known, n=1)
    return f"'{found['given']}' is not one of: {', '.join(known)}.{f' Did you mean {nearest[0]!r}?' if nearest else ''}"


def _print_page(command: Any, context: Any) -> None:
    out.print(Text(f"\n{command.get_usage(context)}\n", style="bold"))
    for paragraph in (command.help or "").split("\n\n"):
        out.print(_highlighted(Text(f"{' '.join(paragraph.split())}\n")))
    _print_panels(_command_panels(command))
    _print_panels({title: [label_and_help(item) for item in items] for title, items in option_panels(command, context).items()})
    if command.epilog:
        out.print(Text(f"\n{command.epilog.replace(_PARAGRAPH, _LINE)}\n"), soft_wrap=True)


def _command_panels(command: Any) -> dict[str, list[tuple[str, Text]]]:
    """Return the names and first sentences of a group's commands, by panel."""
    found: dict[str, list[tuple[str, Text]]] = {}
    for name, item in getattr(command, "commands", {}).items():
        found.setdefault(item.rich_help_panel, []).append((name, Text(" ".join(item.help.split("\n\n")[0].split()))))
    return found


def option_panels(command: Any, context: Any) -> dict[str, list[Any]]:
    """Return the arguments and options by panel, in the order of the page."""
    found: dict[str, list[Any]] = {}
    for item in command.get_params(context):
        title = OUTPUT if "--help" in item.opts else item.rich_help_panel or OPTIONS
        found.setdefault(ARGUMENTS if item.param_type_name == "argument" else title, []).append(item)
    arguments = found.pop(ARGUMENTS, [])
    if set(found) <= {OPTIONS, COMMON, OUTPUT}:
        # A short page: one panel.
        found = {OPTIONS: [item for title in (OPTIONS, COMMON, OUTPUT) for item in found.get(title, [])]}
    else:
        found[COMMON] = found.pop(OPTIONS, []) + found.pop(COMMON, [])
    order = [COMMON, *(title for title in found if title not in (COMMON, *_LAST)), *_LAST]
    return {title: items for title, items in ((ARGUMENTS, arguments), *((title, found.get(title)) for title in order)) if items}


def _print_panels(panels: dict[str, list[tuple[str, Text]]]) -> None:
    width = min(_LABEL_WIDTH, max((len(label) for rows in panels.values() for label, _ in rows), default=0))
    for title, rows in panels.items():
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(width=width, style="bold cyan")
        table.add_column(ratio=1)
        for label, text in rows:
            table.add_row(label, _highlighted(text))
        out.print(Panel(table, title=title, title_align="left", border_style="dim", box=box.ROUNDED, expand=True))


def _highlighted(text: Text) -> Text:
    text.highlight_regex(r"(?<![\w-])--[a-z][\w-]*", "cyan")
    return text


def _argument(item: Any) -> str:
    name = f"{item.metavar or item.name.upper()}{'' if item.nargs == 1 else '...'}"
    return name if item.required else f"[{name}]"


def label_and_help(item: Any) -> tuple[str, Text]:
    """Return the label and the help of an argument or option, with its values and default."""
    if item.param_type_name == "argument":
        values = f" [values: {', '.join(choices(item))}]" if choices(item) else ""
        return _argument(item), Text(item.help or "").append(values, style="dim")
    flags = ", ".join([*sorted(item.opts, key=len), *item.secondary_opts])
    return flags if item.is_flag else f"{flags} {_metavar(item)}", Text(item.help or "").append(_notes(item), style="dim")


def choices(item: Any) -> tuple[str, ...]:
    """Return the values of an option that is a choice, otherwise nothing."""
    kind = getattr(item, "type_descriptor", None) or item.type  # typer with click's types of its own, or those of the click package
    return tuple(str(value) for value in getattr(kind, "choices", None) or ())


def _metavar(item: Any) -> str:
    return item.metavar or ("CHOICE" if choices(item) else "TEXT")


def _notes(item: Any) -> str:
    """Return the values, the default and the environment variable, such as `` [values: none, loss; default: none]``."""
    notes = [f"values: {', '.join(choices(item))}"] if choices(item) else []
    if not item.is_flag and item.default not in (None, (), []):
        shown = item.default if not isinstance(item.default, list | tuple) else ",".join(map(str, item.default))
        notes.append(f"default: {shown:g}" if isinstance(shown, float) else f"default: {shown}")
    if item.envvar:
        notes.append(f"environment variable: {item.envvar}")
    if item.required:
        notes.append("required")
    return f" [{'; '.join(notes)}]" if notes else ""
