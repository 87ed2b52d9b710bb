"""Text to token ids as the checkpoint does it, cut to length."""
