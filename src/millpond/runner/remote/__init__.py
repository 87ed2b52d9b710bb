"""A model runner in child processes: what the parent and the child know of each other."""
