"""A whole model on packed rows without its own forward."""
