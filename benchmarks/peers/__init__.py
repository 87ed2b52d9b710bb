"""The libraries that Millpond is compared with, each in a process and an environment of its own."""
