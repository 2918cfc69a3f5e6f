"""The reference of the command line, from the program itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

MARK = "<!-- the commands -->"


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Put the commands where the mark is."""
    if MARK not in markdown:
        return markdown
    from localopt.cli import app

    group: Any = typer.main.get_command(app)
    return markdown.replace(MARK, "\n".join(line for name in group.commands for line in _lines(group.commands[name])))


def _lines(command: Any) -> Iterator[str]:
    """Yield the Markdown lines of one command."""
    options = [one for one in command.params if one.param_type_name == "option" and not one.hidden]
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    required = [f"{_name(option)} {_value(option)}" for option in options if option.required]
    usage = ["localopt", command.name, *map(_value, arguments), *required, *(["[options]"] if options else [])]
    yield from (f"## localopt {command.name}", "", *(command.help or "").splitlines(), "")
    yield from ("```text", " ".join(usage), "```", "")
    for argument in arguments:
        yield from (f"`{_value(argument)}`", f":   {argument.help or ''}", "")
    for option in options:
        notes = "required" if option.required else ""
        if not option.is_flag and option.default not in (None, ()) and not option.required:
            notes = f"default `{option.default}`"
        value = "" if option.is_flag else f" {_value(option)}"
        yield from (f"`{_name(option)}{value}`{notes and f' *({notes})*'}", f":   {option.help or ''}", "")


def _name(option: Any) -> str:
    return str(max(option.opts, key=len))


def _value(parameter: Any) -> str:
    """Return what a value of a parameter is called in the help."""
    return str(parameter.metavar or parameter.name.upper())
