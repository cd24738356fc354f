"""The command line: one parser of all commands, one handler of their errors, one progress line."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import math
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from mcml import __version__
from mcml.base.errors import McmlError, StoppedError, UsageError, choose

ABOUT = "Multi-channel multi-loss image compression: colour metrics, codecs, networks, notebooks."


def main() -> NoReturn:
    """Run this process's command line; SIGINT and SIGTERM become an exception, so that all is cleaned up."""

    def stop(number: int, _: Any) -> None:
        raise StoppedError(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    sys.exit(run(sys.argv[1:]))


def run(words: Sequence[str]) -> int:
    """Run a command line; return 0, 1 for bad data, 2 for bad words, 130 after Ctrl-C, 143 after SIGTERM."""
    options = argparse.Namespace(debug="--debug" in words, failed=False)
    words = [word for word in words if word != "--debug"]
    whole = parser()
    commands = whole.get_default("commands")
    try:
        if not words or words[0].startswith("-"):
            whole.parse_args(words or ["--help"])  # ends here: --help, --version or a mistake
        command = commands[choose("command", words[0], commands)]
        command.parse_intermixed_args(words[1:], options)  # options may stand between files
        options.run(options)
        sys.stdout.flush()
        return int(options.failed)
    except (McmlError, StoppedError) as error:
        fail(options, error)
        return error.exit_code
    except SystemExit as ended:  # argparse after --help and --version
        return int(ended.code or 0)
    except BrokenPipeError:  # who reads our output, as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if options.debug:
            raise
        fault = f"{type(error).__name__}: {error}"
        print(f"mcml: a fault of mcml itself, {fault} (--debug shows where)", file=sys.stderr)
        return 1


def parser() -> Parser:
    """Return the parser of the whole command line."""
    from mcml.cli import files, tables, train

    whole = Parser(prog="mcml", description=ABOUT, epilog="`mcml COMMAND --help` lists options and examples.")
    whole.add_argument("--version", action="version", version=f"mcml {__version__}")
    whole.add_argument("--debug", action="store_true", help="show an error's traceback; may stand anywhere")
    commands = whole.add_subparsers(title="commands", metavar="COMMAND")
    for module in (files, tables, train):
        module.add_commands(commands)
    whole.set_defaults(commands=commands.choices)
    return whole


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are `UsageError`, which `main` prints as it prints every other."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise UsageError(f"{message}; `{self.prog} --help` tells more")


def add_command(commands: Any, run: Callable[[argparse.Namespace], None]) -> Callable[..., Any]:
    """Declare a command by its function, and return what adds its options.

    The function is named like the command; its docstring is the help: a sentence, then examples.
    """
    about, _, examples = inspect.getdoc(run).partition("\n\n")
    command = commands.add_parser(
        run.__name__.replace("_", "-"), help=about.split(":")[0], description=about, epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    command.set_defaults(run=run)
    return command.add_argument


def number(kind: type[int] | type[float], low: float, high: float = math.inf) -> Callable[[str], Any]:
    """Return the type of an option that is a number from `low` to `high`."""

    def parse(text: str) -> int | float:
        with contextlib.suppress(ValueError):
            if low <= (value := kind(text)) <= high:
                return value
        what = f"{'a whole number' if kind is int else 'a number'} from {low:g}"
        what += f" to {high:g}" if high < math.inf else ""
        raise argparse.ArgumentTypeError(f"expected {what}, not '{text}'")

    return parse


def shown(path: Path) -> str:
    """Return a path that can be printed, whatever bytes it has."""
    return os.fsencode(path).decode("utf-8", "replace")


def fail(options: argparse.Namespace, error: BaseException, path: Path | None = None) -> None:
    """Print an error's sentence, which names the file that it is about; a command that goes on ends in 1."""
    options.failed = True
    if options.debug:
        traceback.print_exception(error)
    named = path is None or str(error).startswith(f"{path}: ")
    print(f"mcml: {error}" if named else f"mcml: {shown(path)}: {error}", file=sys.stderr)


class Progress(contextlib.AbstractContextManager):
    """One line on stderr: on a terminal rewritten, elsewhere printed every `every_s` seconds, or never."""

    def __init__(self, what: str, every_s: float | None = None) -> None:
        self.is_terminal, self.every_s = sys.stderr.isatty(), every_s
        self.start(what)

    def start(self, what: str) -> None:
        """Begin something else, from zero."""
        self.what, self.first = what, None  # the first share: a resumed run has one
        self.began, self.printed = time.monotonic(), -math.inf

    def update(self, share: float, text: str) -> None:
        """Show that a share (0 to 1) is done, and what is being done."""
        now, share = time.monotonic(), min(share, 1.0)
        self.first = share if self.first is None else self.first
        passed, gained = now - self.began, share - self.first
        left = f", {passed * (1 - share) / gained:.0f} s left" if gained > 0 and share < 1 else ""
        bar = f"{'#' * round(20 * share):-<20}"
        line = f"{self.what} [{bar}] {100 * share:3.0f} %  {text}  {passed:.0f} s{left}"
        if self.is_terminal:
            self.clear()
            print(line[: shutil.get_terminal_size().columns - 1], end="", file=sys.stderr, flush=True)
        elif self.every_s is not None and (share >= 1 or now - self.printed >= self.every_s):
            self.printed = now
            self.say(line)

    def say(self, line: str) -> None:
        """Print a line above the progress."""
        self.clear()
        print(line, file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Wipe the line, so that something else can be printed."""
        if self.is_terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        self.clear()
