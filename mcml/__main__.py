"""`python -m mcml`, and what the command `mcml` starts."""

from __future__ import annotations

import sys

BARE = ("train", "info")  # run where typer is not installed


def main() -> None:
    """Hand over to the command line that the first word asks for."""
    words = [word for word in sys.argv[1:] if word != "--debug"]
    if words and words[0] in BARE:
        from mcml import train_cli

        try:
            code = train_cli.main()
            sys.stdout.flush()
        except BrokenPipeError:
            sys.stderr.close()
            code = 1
        sys.exit(code)
    from mcml import cli

    cli.main()


if __name__ == "__main__":
    main()
