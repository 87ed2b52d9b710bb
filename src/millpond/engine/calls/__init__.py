"""What a caller does: options, requests, waiting, results."""
