"""The command line: one parser of all commands, one handler of their errors, one progress line."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import math
import os
import re
import shutil
import signal
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from mcml import __version__
from mcml.base.errors import (
    DataError,
    McmlError,
    StoppedError,
    UsageError,
    choose,
    explained,
    nearest,
)
from mcml.base.files import legible, shown, to_json

ABOUT = "Multi-channel multi-loss image compression: colour metrics, codecs, networks, notebooks."


def main() -> NoReturn:
    """Run this process's command line; SIGINT and SIGTERM become an exception, so that all is cleaned up."""
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what could follow
        import argcomplete

        argcomplete.autocomplete(parser())

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)  # whoever asks twice need not wait
        if not _importing(frame):
            raise StoppedError(number)
        signal.signal(signal.SIGALRM, lambda _, frame: stop(number, frame))
        signal.setitimer(signal.ITIMER_REAL, 0.02)

    _mend_streams()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    sys.exit(run(sys.argv[1:]))


def _importing(frame: FrameType | None) -> bool:
    """Say whether a module is being imported: an exception in it could be lost, or leave half a library."""
    while frame is not None and "importlib" not in frame.f_code.co_filename:
        frame = frame.f_back
    return frame is not None


def _mend_streams() -> None:
    """Let no letter fail on a screen, nor a file take the place of a standard stream that is closed."""
    for number, flags in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:  # what reads standard input or writes standard output then fails
            os.open(os.devnull, flags)
    for number, stream in ((1, "stdout"), (2, "stderr")):  # anew: what could not be written stays in it
        look = {"encoding": getattr(getattr(sys, stream), "encoding", "utf-8"), "errors": "backslashreplace"}
        setattr(sys, stream, os.fdopen(number, "w", -1 if number == 1 else 1, closefd=False, **look))


def run(words: Sequence[str]) -> int:
    """Run a command line and return its exit code.

    0, 1 for bad data, 2 for bad words, 130 after Ctrl-C, 143 after SIGTERM, 141 where who reads our output
    has seen enough, as `head`.
    """
    options = argparse.Namespace(debug="--debug" in words, failed=False)
    words = [word for word in words if word != "--debug"]
    if "--" in words:  # after it all are names
        end = words.index("--")
        words[end:] = [f"./{word}" if word.startswith("-") else word for word in words[end + 1 :]]
    if words[:1] == ["help"]:
        words = [*words[1:2], "--help"]
    try:
        whole = parser()
        commands = whole.get_default("commands")
        if not words or words[0].startswith("-"):
            whole.parse_args(words or ["--help"])  # ends here: --help, --version or a mistake
        if words[0] not in commands and Path(words[0]).suffix:
            likely = "decompress" if words[0].lower().endswith(".mcml") else "compress"
            raise UsageError(f"'{words[0]}' is no command: did you mean `mcml {likely} {words[0]}`?")
        command = commands[choose("command", words[0], commands)]
        command.parse_intermixed_args(words[1:], options)  # options may stand between files
        try:
            os.getcwd()  # noqa: PTH109  (what folders' names count from)
        except OSError as error:
            raise DataError("the current folder is gone; change to one that is there") from error
        options.run(options)
        code = int(options.failed)
    except (McmlError, StoppedError) as error:
        fail(options, error)
        code = error.exit_code
    except SystemExit as ended:  # argparse after --help and --version
        code = int(ended.code or 0)
    except Exception as error:
        code = 1
        if not (isinstance(error, OSError) and _unflushed()):
            if options.debug:
                raise
            tell(f"mcml: a fault of mcml itself: {explained(error)}")
    if error := _unflushed():
        _discard(sys.stdout)
        if isinstance(error, BrokenPipeError):
            return 128 + signal.SIGPIPE
        tell(f"mcml: standard output: cannot be written ({error.strerror})")
        code = code or 1
    return code


def _unflushed() -> OSError | None:
    """Return why standard output cannot be written, if that is so."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return error
    return None


def _discard(stream: Any) -> None:
    """Let a standard stream that cannot be written swallow what is left in it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def tell(text: str, end: str = "\n") -> None:
    """Print to stderr; if it cannot be written the work goes on without."""
    try:
        print(text, end=end, file=sys.stderr, flush=True)
    except OSError:
        _discard(sys.stderr)


def parser() -> Parser:
    """Return the parser of the whole command line."""
    from mcml.cli import files, tables, train

    more = "`mcml COMMAND --help` lists options and examples."
    whole = Parser(prog="mcml", description=ABOUT, epilog=more, formatter_class=Help)
    whole.add_argument("--version", action="version", version=f"mcml {__version__}")
    whole.add_argument("--debug", action="store_true", help="show an error's traceback; may stand anywhere")
    commands = whole.add_subparsers(title="commands", metavar="COMMAND", prog="mcml")
    for module in (files, tables, train):
        module.add_commands(commands)
    add_command(commands, completion)(
        "shell", metavar="SHELL", choices=("bash", "zsh", "fish"), help="bash, zsh or fish"
    )
    whole.set_defaults(commands=commands.choices)
    return whole


def completion(options: argparse.Namespace) -> None:
    """Print what lets a shell complete commands, options, files, and names of codecs and models.

    mcml completion bash

    Put `eval "$(mcml completion bash)"` into ~/.bashrc, or the same with zsh into ~/.zshrc after compinit.
    """
    import argcomplete

    print(argcomplete.shellcode(["mcml"], shell=options.shell))


def model_names(**_: Any) -> list[str]:
    """Return what completes a model's name."""
    from mcml.model.model_files import released

    return released()


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are `UsageError`, which `main` prints as it prints every other."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage; name the options near to an unknown one."""
        message, hint = message.removeprefix("argument "), ""
        start, _, rest = message.partition(": ")
        if start == "the following arguments are required":
            message = f"missing: {rest}"
        elif start == "unrecognized arguments":
            word = next((word for word in rest.split() if word.startswith("-")), rest).partition("=")[0]
            message = f"unknown option {word}" if word.startswith("-") else f"too many words: {rest}"
            known = [name[2:] for name in self._option_string_actions if name.startswith("--")]
            hint = nearest(word[2:], known) if word.startswith("--") else ""  # dashes are alike in all
            hint = re.sub("'(?=[a-z])", "'--", hint)
        raise UsageError(f"{message}{': ' + hint if hint else '; '}`{self.prog} --help` tells more")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None:
            choose("/".join(action.option_strings) or action.metavar.lower(), value, action.choices)


class Help(argparse.RawDescriptionHelpFormatter):
    """The look of all help pages: a short usage, every option's default, flags as --flag/--no-flag."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, **{"max_help_position": 30, **options})

    def add_usage(self, usage: Any, actions: Any, groups: Any, prefix: str | None = None) -> None:
        """Leave out what need not be given."""
        self._prog += " [OPTIONS]"
        super().add_usage(usage, [a for a in actions if a.required or not a.option_strings], [], prefix)

    def _iter_indented_subactions(self, action: argparse.Action) -> Any:
        return getattr(action, "_get_subactions", tuple)()  # not indented

    def _format_action(self, action: argparse.Action) -> str:
        text = super()._format_action(action)
        return text.partition("\n")[2] if action.nargs == argparse.PARSER else text  # no line COMMAND

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if isinstance(action, argparse.BooleanOptionalAction):
            return "/".join(action.option_strings)
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        return f"{', '.join(action.option_strings)} {self._format_args(action, action.dest.upper())}"

    def _get_help_string(self, action: argparse.Action) -> str:
        default = action.default
        if isinstance(action, argparse.BooleanOptionalAction):
            default = "yes" if default else "no"
        elif not action.option_strings or action.nargs == 0 or default in (None, "", []):
            return action.help
        return f"{action.help} (default: {default})"

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = [
            "examples:\n" + textwrap.indent(part, "  ") if re.match("mcml [a-z]", part)
            else textwrap.fill(part, width, break_on_hyphens=False)
            for part in text.split("\n\n")
        ]  # fmt: skip
        return "\n\n".join(parts)


def add_command(commands: Any, run: Callable[[argparse.Namespace], None]) -> Callable[..., None]:
    """Declare a command by its function, and return what adds its options, as `add_argument` does.

    The function is named like the command; its docstring is the help: a sentence, examples, more. An option
    with `flag`, which is its default, is a switch: --option and --no-option. Names are completed by
    `completer`, as argcomplete calls it.
    """
    about, _, examples = inspect.getdoc(run).partition("\n\n")
    name, short = run.__name__.replace("_", "-"), re.split("[.:;]( |$)", about)[0]
    look = {"formatter_class": Help, "allow_abbrev": False}
    command = commands.add_parser(name, help=short, description=about, epilog=examples, **look)
    command.set_defaults(run=run)

    def add(*names: str, flag: bool | None = None, completer: Any = None, **about: Any) -> None:
        if flag is None:
            action = command.add_argument(*names, **about)
            if completer:
                action.completer = completer
        else:  # set later, for argparse of Python 3.11 tells a default in words of its own
            command.add_argument(*names, action=argparse.BooleanOptionalAction, **about).default = flag

    return add


def add_output(add: Callable[..., None]) -> None:
    """Declare the options of `print_rows`."""
    add("--all", flag=False, help="show every column")
    add("--json", flag=False, help="print JSON instead: every column, in full precision")


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


def color(text: str) -> tuple[int, int, int]:
    """Return a colour by its name or by `#rrggbb`, sRGB, 0..255."""
    from PIL import ImageColor

    try:
        return ImageColor.getrgb(text)[:3]
    except ValueError:
        expected = "expected a colour, as white or #ffcc00"
        raise argparse.ArgumentTypeError(f"{expected}, not '{text}'") from None


MODEL = {"metavar": "NAME", "completer": model_names}
BACKGROUND = {
    "type": color, "metavar": "COLOUR",
    "help": "behind transparent pixels, as white; mixed in as browsers do (default: they are refused)",
}  # fmt: skip


def print_rows(
    options: argparse.Namespace, rows: Sequence[Mapping[str, Any]], brief: Sequence[str], /, **content: Any
) -> None:
    """Print the columns `brief` of rows, with --all every one; with --json `content`, else the rows.

    JSON keeps full precision; what is infinite or not a number is null.
    """
    from mcml.lab.output import print_table

    if options.json:
        print(to_json(content or {"rows": list(rows)}))
        return
    print_table([{k: row[k] for k in (row if options.all else brief) if k in row} for row in rows])


def fail(options: argparse.Namespace, error: BaseException, path: Path | None = None) -> None:
    """Print an error's sentence, which names the file that it is about; a command that goes on ends in 1."""
    options.failed = True
    if options.debug:
        tell("".join(traceback.format_exception(error)), end="")
    text = str(error := explained(error))
    if path is not None and not text.startswith(f"{path}: "):
        text = f"{path}: {text}"
    tell(f"mcml: {shown(text) if isinstance(error, (DataError, UsageError)) else legible(text)}")


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
            columns = 0
            with contextlib.suppress(OSError):
                columns = os.get_terminal_size(sys.stderr.fileno()).columns  # stdout's may be another
            columns = columns or shutil.get_terminal_size().columns
            tell(line[: columns - 1], end="")
        elif self.every_s is not None and (share >= 1 or now - self.printed >= self.every_s):
            self.printed = now
            self.say(line)

    def say(self, line: str) -> None:
        """Print a line above the progress."""
        self.clear()
        tell(line)

    def clear(self) -> None:
        """Wipe the line, so that something else can be printed."""
        if self.is_terminal:
            tell("\r\x1b[K", end="")

    def __exit__(self, *_: object) -> None:
        self.clear()
