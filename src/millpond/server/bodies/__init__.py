"""Bodies in the formats of other servers, one module for each."""
