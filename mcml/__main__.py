"""`python -m mcml`, and what the command `mcml` starts."""

from __future__ import annotations

import sys

BARE = ("train", "info", "train-entropy")  # run where typer is not installed


def main() -> None:
    """Hand over to the command line that the first word asks for."""
    words = [word for word in sys.argv[1:] if word != "--debug"]
    if words and words[0] in BARE:
        from mcml.cli import train as train_cli
        from mcml.cli import train_entropy as entropy_cli

        try:
            code = (entropy_cli if words[0] == "train-entropy" else train_cli).main()
            sys.stdout.flush()
        except BrokenPipeError:
            sys.stderr.close()
            code = 1
        sys.exit(code)
    from mcml.cli import main as cli

    cli.main()


if __name__ == "__main__":
    main()
