"""`python -m mcml`, and what the command `mcml` starts."""

from mcml.cli.main import main

if __name__ == "__main__":
    main()
