"""What a checkpoint gives of a text or a pair, by its files."""
