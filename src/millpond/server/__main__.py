"""`python -m millpond.server`: `millpond serve`, for those who come with a vLLM command."""

from .main import main

if __name__ == "__main__":
    main()
