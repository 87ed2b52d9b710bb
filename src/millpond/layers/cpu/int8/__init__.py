"""Layers for a CPU in int8."""
