"""What every request of the server passes through."""
