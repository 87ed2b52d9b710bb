"""Texts that the fake runner fails on, and the errors that they get."""

from __future__ import annotations

from millpond import NonFiniteVector, OutOfMemory, TextFailed

FAULTS: dict[str, type[TextFailed]] = {
    "poison": TextFailed,
    "nan": NonFiniteVector,
    "huge": OutOfMemory,
}
SCRIPT = {"raises_on": ["poison"], "not_finite_on": ["nan"], "memory_error_on": ["huge"]}
