"""Attention over packed sequences, with and without cached prefixes, and the KV memory."""
