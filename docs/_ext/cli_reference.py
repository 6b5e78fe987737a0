"""Reference of the command line, generated from the commands themselves: the texts are those of ``--help``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer

from edgetl.cli.app import app

_EXTRA = re.compile(r"\s*\[(?P<extra>(?:default|required|env var)[^\]]*)\]\s*$")
_FLAG = re.compile(r"(?<![\w`-])(--[a-z][a-z0-9-]*)")


def commands() -> str:
    """Return one section for each group of commands, and in it one for each command."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    group: Any = typer.main.get_command(app)
    with group.make_context("edgetl", [], resilient_parsing=True) as root:
        title = ""
        for name, command in sorted(group.commands.items(), key=lambda item: _order(group, item[1])):
            if command.hidden:
                continue
            if _panel(command, "Commands") != title:
                title = _panel(command, "Commands")
                yield f"## {title}\n"
            with command.make_context(name, [], parent=root, resilient_parsing=True) as context:
                yield from _command(f"edgetl {name}", command, context)


def _order(group: Any, command: Any) -> int:
    """Position of a command: by group in the order of the first member, then as registered."""
    members = list(group.commands.values())
    first = next(index for index, member in enumerate(members) if _panel(member, "Commands") == _panel(command, "Commands"))
    return first * len(members) + members.index(command)


def _panel(item: Any, default: str) -> str:
    """Title of the panel of ``--help``; typer stores a placeholder where none was given."""
    return item.rich_help_panel if isinstance(item.rich_help_panel, str) else default


def _command(name: str, command: Any, context: Any) -> Iterator[str]:
    yield f"### {name}\n"
    yield f"{_markdown(command.help or '')}\n"
    yield f"```text\n{command.get_usage(context).removeprefix('Usage: ')}\n```\n"
    yield f"```{{program}} {name}\n```\n"
    panels: dict[str, list[str]] = {}
    for parameter in command.params:
        if record := parameter.get_help_record(context):
            default = "Arguments" if parameter.param_type_name == "argument" else "Options"
            panels.setdefault(_panel(parameter, default), []).append(_option(*record))
    for title, items in sorted(panels.items(), key=lambda item: item[0] != "Arguments"):
        yield f"```{{rubric}} {title}\n```\n"
        yield from items
    if command.epilog:
        yield "```{rubric} Examples\n```\n"
        yield f"{_examples(command.epilog)}\n"


def _option(signature: str, text: str) -> str:
    """Return the directive ``option`` with the help text, and below it default and environment variable."""
    extra = _EXTRA.search(text)
    lines = [f"````{{option}} {signature.replace(' / ', ', ')}", _markdown(text[: extra.start()] if extra else text)]
    for part in extra["extra"].split("; ") if extra else ():
        key, _, value = part.partition(": ")
        lines.append(f"\n{key.capitalize()}{f': `{value}`' if value else ''}.")
    return "\n".join([*lines, "````\n"])


def _markdown(text: str) -> str:
    """Return plain text as Markdown, with options as code."""
    parts = re.split(r"(`[^`]+`)", text)
    escaped = [part if part.startswith("`") else _FLAG.sub(r"`\1`", re.sub(r"([\\*_<>\[\]|#])", r"\\\1", part)) for part in parts]
    return "".join(escaped)


def _examples(epilog: str) -> str:
    """Return the commands of the epilog as one console block."""
    lines = [line.strip() for line in epilog.replace("\b", "").splitlines()]
    shown = [line if line.startswith("$ ") else f"$ {line}" for line in lines if line.removeprefix("$ ").startswith("edgetl ")]
    return "```console\n" + "\n".join(shown) + "\n```"
