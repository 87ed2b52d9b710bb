"""Classes of transformers' own, for those who look for their instances in a model."""

from __future__ import annotations

import sys

__all__ = ["transformers_classes"]


def transformers_classes(module: str, *names: str) -> tuple[type, ...]:
    """Classes in a module of transformers; none where it is not imported: no model has one then."""
    found = sys.modules.get(f"transformers.{module}")
    classes = (getattr(found, name, None) for name in names)
    return tuple(one for one in classes if isinstance(one, type))
