"""`millpond info MODEL`: a checkpoint's settings, and how it runs here."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from ..config import EngineConfig
from .flags import open_engine, with_flags_of

__all__ = ["info"]


@with_flags_of(EngineConfig)
def info(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, or a name on the hub.")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    **engine_options: Any,
) -> None:
    """Load a model and show its checkpoint's settings and how it runs here.

    \b
    Example:
      millpond info sentence-transformers/all-MiniLM-L6-v2
    """
    with open_engine(model, engine_options) as engine:
        about = engine.info()
    if as_json:
        print(json.dumps(about.as_dict(), ensure_ascii=False, indent=2, default=str))
    else:
        print(about)
