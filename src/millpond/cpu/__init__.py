"""What a running CPU pass shares with others: threads, preemption, the few row counts."""
