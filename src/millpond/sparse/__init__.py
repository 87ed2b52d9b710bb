"""Sparse vectors: weights of a few dimensions out of many, most often of terms of a vocabulary."""
