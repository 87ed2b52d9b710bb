"""Layers for a CPU."""
