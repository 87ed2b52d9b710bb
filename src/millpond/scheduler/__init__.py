"""Which texts run together, and when. Integers only: nothing here knows torch or a model."""
