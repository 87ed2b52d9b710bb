"""Kernels in Triton, and which of them this machine has."""
