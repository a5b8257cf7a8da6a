"""The command line out of frozen dataclasses: one flag a field."""

from __future__ import annotations

import dataclasses
import re
import sys
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from jsonargparse import ArgumentParser

C = TypeVar("C")


class Parser(ArgumentParser):
    """A parser whose complaints are one sentence on standard error and exit code 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:  # noqa: ARG002
        """Say what is wrong in one sentence, and leave."""
        sentence = " ".join(str(message).split())
        sentence = re.sub(r'Parser key "(\w+)":', r"--\1:", sentence)
        sentence = re.sub(r"<class '([\w.]+)'>|typing\.(\w+)", r"\1\2", sentence)
        print(f"{self.prog}: {sentence} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def build_parser(
    prog: str, description: str, configs: Sequence[type[Any]], defaults: Mapping[str, Any]
) -> Parser:
    """A parser with one flag a field of each dataclass in `configs`, --config and --print_config.

    `defaults` replace those of the fields they name.
    """
    parser = Parser(prog=prog, description=description)
    parser.add_argument("--config", action="config", help="YAML file that sets any of the flags")
    for config in configs:
        types = typing.get_type_hints(config)
        for f in dataclasses.fields(config):
            add_flag(parser, f, types[f.name], defaults.get(f.name, f.default))
    return parser


def add_flag(parser: Parser, f: dataclasses.Field[Any], kind: Any, default: Any) -> None:
    """Add one dataclass field of type `kind` to the parser."""
    limits = [f"{word} {limit:g}" for word, limit in f.metadata.get("limits", {}).items()]
    text = f.metadata["help"] + (f" ({', '.join(limits)})" if limits else "")
    if kind is bool:
        parser.add_argument(f"--{f.name}", action="store_true", default=default, help=text)
        return
    options: dict[str, Any] = {}
    if typing.get_origin(kind) is tuple:
        kind, default, options = typing.get_args(kind)[0], list(default), {"nargs": "*"}
    parser.add_argument(f"--{f.name}", type=kind, default=default, help=text, **options)


def parse(parser: Parser, arguments: Sequence[str]) -> dict[str, Any]:
    """What `arguments` ask for, name -> value. Leaves with code 2 if they don't parse."""
    values: dict[str, Any] = parser.parse_args(list(arguments)).as_dict()
    values.pop("config", None)
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}


def build(config: type[C], values: Mapping[str, Any]) -> C:
    """The dataclass out of those of `values` that are its fields."""
    names = [f.name for f in dataclasses.fields(config)]  # type: ignore[arg-type]
    return config(**{name: values[name] for name in names})


def peek(arguments: Sequence[str], name: str, default: str) -> str:
    """What `arguments`, or the --config file among them, will set `name` to.

    Defaults depend on the data set, so it must be known before the parser is built. Whatever is
    wrong with the arguments is left for the parser to say.
    """
    for place, argument in reversed(list(enumerate(arguments))):
        if argument == f"--{name}" and place + 1 < len(arguments):
            return arguments[place + 1]
        if argument.startswith(f"--{name}="):
            return argument.split("=", 1)[1]
    file = peek(arguments, "config", "") if name != "config" else ""
    if file and Path(file).is_file():
        try:
            content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            return default
        if isinstance(content, dict):
            return str(content.get(name, default))
    return default
