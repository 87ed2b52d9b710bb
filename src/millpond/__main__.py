"""`python -m millpond` is the `millpond` command."""

from .cli import main

if __name__ == "__main__":
    main()
