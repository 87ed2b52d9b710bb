"""The engine step, its workers and threads, and what they share."""
