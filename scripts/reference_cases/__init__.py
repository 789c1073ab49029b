"""The cases of scripts/record_reference.py: a module per group of families, each with CASES."""

import importlib
import pkgutil

from reference_cases.case import Case


def all_cases() -> list[Case]:
    """Every module's cases."""
    modules = sorted(info.name for info in pkgutil.iter_modules(__path__) if info.name != "case")
    return [case for name in modules for case in importlib.import_module(f"{__name__}.{name}").CASES]
