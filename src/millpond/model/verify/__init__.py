"""What a model may do, found by ordinary texts when it is loaded."""
