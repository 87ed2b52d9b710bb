"""Programs that measure Millpond; run from the root of the repository, as modules."""
