"""A `Batch` to tensors, a forward pass and vectors; how large a batch may be."""
