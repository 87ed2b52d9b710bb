"""`Pair`: a query and a document that are read as one."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Pair"]


@dataclass(frozen=True, slots=True)
class Pair:
    """A query and a document that are read as one. Its length is the characters of both."""

    query: str
    document: str

    def __len__(self) -> int:
        return len(self.query) + len(self.document)
