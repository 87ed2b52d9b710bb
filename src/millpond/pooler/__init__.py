"""Token rows to one vector per text: pooling and the modules after it."""
