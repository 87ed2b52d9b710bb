"""From a model's name to its files, from files to a `ModelSpec`: facts, never a forward pass."""
