"""`python -m millpond.server`: `millpond serve`, for those who come with a vLLM command."""

from ..cli.serve import main

if __name__ == "__main__":
    main()
