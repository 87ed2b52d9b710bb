"""The server process: its socket, its connections, its logs, from the load to the last response."""
