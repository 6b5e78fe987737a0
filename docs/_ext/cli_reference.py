"""Reference of the command line, generated from the commands themselves: the texts are those of ``--help``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer
from markup import plain_text

from edgetl.cli.app import COMMANDS, app, command_name
from edgetl.cli.examples import EXAMPLES
from edgetl.cli.help import label_and_help, option_panels

_NOTES = re.compile(r" \[(?P<notes>(?:values|default|environment variable|required)\b[^\]]*)\]$")


def commands() -> str:
    """Return one section for each group of commands, and in it one for each command."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    group: Any = typer.main.get_command(app)
    with group.make_context("edgetl", [], resilient_parsing=True) as root:
        for title, functions in COMMANDS.items():
            yield f"## {title}\n"
            for function in functions:
                name = command_name(function)
                with group.commands[name].make_context(name, [], parent=root, resilient_parsing=True) as context:
                    yield from _command(name, group.commands[name], context)


def _command(name: str, command: Any, context: Any) -> Iterator[str]:
    yield f"### edgetl {name}\n"
    yield from (f"{plain_text(paragraph)}\n" for paragraph in (command.help or "").split("\n\n"))
    yield f"```text\n{command.get_usage(context).removeprefix('Usage: ')}\n```\n"
    yield f"```{{program}} edgetl {name}\n```\n"
    for title, items in option_panels(command, context).items():
        shown = [item for item in items if "--help" not in item.opts]
        if shown:
            yield f"```{{rubric}} {title}\n```\n"
            yield from map(_option, shown)
    examples = [line for purpose, example in EXAMPLES[name] for line in (f"# {purpose}", f"$ {example}")]
    yield "\n".join(["```{rubric} Examples\n```\n", "```console", *examples, "```\n"])


def _option(item: Any) -> str:
    """Return the directive ``option`` with the help text, and below it values, default and environment variable."""
    label, text = label_and_help(item)
    notes = _NOTES.search(text.plain)
    lines = [f"````{{option}} {label}", plain_text(text.plain[: notes.start()] if notes else text.plain)]
    for note in notes["notes"].split("; ") if notes else ():
        key, _, value = note.partition(": ")
        words = value.split(", ") if key == "values" else [value]
        lines.append(f"\n{key.capitalize()}{': ' if value else ''}{', '.join(f'`{word}`' for word in words if word)}.")
    return "\n".join([*lines, "````\n"])
