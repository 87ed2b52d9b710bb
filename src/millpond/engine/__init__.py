"""Callers, threads and the engine step; loading and sharing a model in a process."""
