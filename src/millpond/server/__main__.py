"""`python -m millpond.server`: `millpond serve`, with the flags of vLLM's server."""

from ..cli.serve import main

if __name__ == "__main__":
    main()
