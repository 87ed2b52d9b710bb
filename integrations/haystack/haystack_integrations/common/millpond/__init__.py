"""What Millpond's components have in common."""

from .component import MillpondComponent, require_string

__all__ = ["MillpondComponent", "require_string"]
