"""Batches on a CPU."""
