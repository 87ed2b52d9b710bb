"""What is measured of the server, over HTTP."""
