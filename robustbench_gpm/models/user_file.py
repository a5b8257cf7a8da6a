"""A model that a function in the user's own file makes: `path/to/file.py:function`."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from ..core import UserError
from .checks import in_short, require_file


def user_network(path: Path, factory: str, classes: int) -> nn.Module:
    """What `factory` in the file at `path` returns.

    It is called with `num_classes=classes` where it takes such a parameter, else with nothing.
    Raises UserError where the file or the function is absent, either raises, or what is returned is
    not a module.
    """
    require_file(path, "model")
    with _importable_beside(path):
        make = _function(_loaded(path), path, factory)
        arguments = {"num_classes": classes} if _takes_classes(make) else {}
        try:
            network = make(**arguments)
        except (Exception, SystemExit) as error:
            raise UserError(
                f"{factory} in '{path}' raised {type(error).__name__}: {in_short(error)}"
            ) from error
    if not isinstance(network, nn.Module):
        raise UserError(
            f"{factory} in '{path}' must return a torch.nn.Module, and returned "
            f"a {type(network).__name__}"
        )
    return network


def _loaded(path: Path) -> ModuleType:
    # Two files of one name are two modules, and neither hides an installed package.
    unique = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    name = f"robustbench_gpm_user_{unique}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"'{path}' cannot be loaded as Python: it must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their own module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UserError(
            f"loading '{path}' raised {type(error).__name__}: {in_short(error)}"
        ) from error
    return module


def _function(module: ModuleType, path: Path, factory: str) -> Callable[..., Any]:
    make = getattr(module, factory, None)
    if not callable(make):
        raise UserError(f"'{path}' has no function '{factory}': name one that returns the model")
    found: Callable[..., Any] = make
    return found


def _takes_classes(make: Callable[..., Any]) -> bool:
    if isinstance(make, type) and make.__init__ is nn.Module.__init__:  # type: ignore[misc]
        return False  # its signature is open, and it takes nothing
    try:
        parameters = inspect.signature(make).parameters.values()
    except (TypeError, ValueError):  # some compiled callables have no signature
        return False
    return any(p.name == "num_classes" or p.kind is p.VAR_KEYWORD for p in parameters)


@contextmanager
def _importable_beside(path: Path) -> Iterator[None]:
    """Let the file import its neighbours; last in line, so that they hide nothing installed."""
    folder = str(path.resolve().parent)
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
