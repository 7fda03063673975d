"""Names of a package that are loaded when they are first used (PEP 562), so that importing the package is quick."""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module


def lazily(package: str, homes: Mapping[str, Sequence[str]]) -> Callable[[str], object]:
    """The `__getattr__` of a package whose names are defined in its modules.

    Args:
        package: the package's `__name__`.
        homes: for each module, its name within the package and the names that it defines.
    """
    module_of = {name: module for module, names in homes.items() for name in names}

    def load(name: str) -> object:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{module_of[name]}"), name)
        setattr(sys.modules[package], name, value)  # found at once from now on
        return value

    return load
