"""The dialects. Each module that defines `DIALECT` is one; a new file needs no registration."""

from importlib import import_module
from pkgutil import iter_modules

from serve_app.web.dialect import Dialect


def load_dialects() -> tuple[Dialect, ...]:
    """Imports the modules of this package; returns their dialects by `order`, then by name."""
    modules = [import_module(f"{__name__}.{info.name}") for info in iter_modules(__path__)]
    dialects: list[Dialect] = [module.DIALECT for module in modules if hasattr(module, "DIALECT")]
    return tuple(sorted(dialects, key=lambda dialect: (dialect.order, dialect.name)))
