"""The options of calls, validated."""
