"""Layers for CUDA."""
