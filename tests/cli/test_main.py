"""The command line as a whole: help, mistakes, exit codes, signals, pipes and the progress line."""

import argparse
import fcntl
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios

import pytest
from helpers import ROOT, failed
from PIL import Image

from mcml import __version__
from mcml.cli.main import Progress, parser

COMMANDS = parser().get_default("commands")


def start(*words, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "mcml", *words], text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, **options,
    )  # fmt: skip


def test_help_and_version_go_to_stdout_only(mcml):
    result = mcml("--version")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"mcml {__version__}\n", "")
    result = mcml("-h")
    assert (result.returncode, result.stderr) == (0, "")
    for word in ("--debug", "--version", *COMMANDS):
        assert re.search(rf"(^| ){word}\s", result.stdout, re.MULTILINE)
    assert mcml().stdout == mcml("help").stdout == result.stdout
    assert mcml("help", "info").stdout == mcml("info", "-h").stdout != result.stdout
    assert max(map(len, mcml(COLUMNS="80").stdout.splitlines())) <= 78


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command_explains_each_option_and_gives_valid_examples(mcml, name):
    result = mcml(name, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    for action in COMMANDS[name]._actions:
        assert action.help and action.help in result.stdout
        for option in action.option_strings:
            assert option in result.stdout
        if action.option_strings and action.nargs != 0 and action.default not in (None, "", []):
            assert f"{action.help} (default: {action.default})" in result.stdout
        if isinstance(action, argparse.BooleanOptionalAction):
            told = f"{action.help} (default: {'yes' if action.default else 'no'})"
            assert f"{'/'.join(action.option_strings)}" in result.stdout and told in result.stdout
    narrow = mcml(name, "--help", COLUMNS="80").stdout
    assert "<bool>" not in narrow and max(map(len, narrow.splitlines())) <= 88  # an example has its length
    examples = re.findall(rf"^  mcml {name}\b(.*)", result.stdout, re.MULTILINE)
    assert examples or name == "data"
    for example in examples:
        COMMANDS[name].parse_intermixed_args(example.replace("'", "").split())


@pytest.mark.parametrize(
    "words, said",
    [
        ("compres a.png", "unknown command 'compres': did you mean 'compress'?"),
        ("photo.png", "'photo.png' is no command: did you mean `mcml compress photo.png`?"),
        ("photo.mcml", "did you mean `mcml decompress photo.mcml`?"),
        (
            "compare a.png b.png --jason",
            "unknown option --jason: did you mean '--json'? `mcml compare --help`",
        ),
        ("compress a.png --qualty=40", "unknown option --qualty: did you mean '--quality'?"),
        ("compress a.png --percent 40", "unknown option --percent; `mcml compress --help`"),
        ("version", "unknown command 'version': known are"),
        ("evaluate a.mcml --codecs webp", "a.mcml is compressed already: `mcml compare ORIGINAL a.mcml`"),
        ("completion", "missing: SHELL; "),
        ("completion tcsh", "unknown shell 'tcsh': known are bash, fish, zsh"),
        ("compress a.png -q 40", "unknown option -q; `mcml compress --help`"),
        ("compare a.png b.png c.png", "too many words: c.png; "),
        ("compare a.png", "missing: DECODED; "),
        ("compress a.png --effort hi", "unknown --effort 'hi'"),
        ("evaluate photos", "missing: --codecs"),
        ("evaluate photos --codecs jpeg", "did you mean 'jpeg2000', 'jpeg420', 'jpeg444' or 'jpegxl'? known"),
        (
            "evaluate photos --codecs webp --csv t.csv --workers -1",
            "--workers: expected a whole number from 0",
        ),
        ("compress a.png --layers 0", "--layers: expected a whole number from 1 to 255, not '0'"),
        ("decompress a.mcml --layers x", "--layers: expected a whole number from 1, not 'x'"),
        ("compress a.png --over", "--over"),
        ("identify", "FILE"),
        ("train", "--run-dir"),
        ("train --run-dir x --steps few", "--steps: expected a whole number from 0, not 'few'"),
        ("--verbose", "--verbose"),
    ],
)
def test_mistakes_in_the_words_are_one_sentence(mcml, words, said):
    failed(mcml(*words.split()), 2, said)


def test_debug_anywhere_shows_where_an_error_came_from_above_its_sentence(mcml, tmp_path):
    (tmp_path / "text.mcml").write_text("no such thing")
    for words in (
        ["--debug", "compare", "a.png", "b.png"],
        ["info", "--debug", "--variant", "none"],
        ["identify", "text.mcml", "--debug"],
    ):
        plain, result = mcml(*(word for word in words if word != "--debug")), mcml(*words)
        assert result.returncode == plain.returncode > 0
        assert plain.stderr.count("\n") == 1 and "Traceback (most recent call last)" in result.stderr
        assert result.stderr.endswith(plain.stderr)


def test_a_fault_of_our_own_is_a_sentence_too(mcml, monkeypatch, tmp_path):
    (tmp_path / "a.png").touch()
    monkeypatch.setattr("mcml.cli.tables._pairs", lambda *_: 1 / 0)
    failed(mcml("compare", "a.png", "a.png"), 1, "a fault of mcml itself: ", "division by zero", "--debug")
    with pytest.raises(ZeroDivisionError):
        mcml("compare", "a.png", "a.png", "--debug")


def test_help_and_commands_without_networks_load_nothing_heavy(photo_folder):
    code = """
import sys
from mcml.cli.main import run
heavy = {"torch", "pandas", "matplotlib", "constriction", "papermill"}
for words, more in ((["--help"], {"numpy", "PIL"}), (["train", "--help"], {"numpy", "PIL"}),
                    (["identify", "."], {"skimage", "scipy"}), (["compare", ".", "."], set())):
    assert run(words) == (words[0] == "identify"), words
    assert not (heavy | more) & set(sys.modules), (words, (heavy | more) & set(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=photo_folder, check=False
    )
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------- signals, pipes


@pytest.mark.parametrize(
    "words, number, code, said, rows",
    [
        (
            ["compress", "--quality", "5", "--no-metrics"],
            *(
                signal.SIGINT,
                130,
                "interrupted; 1 of 2 are finished and kept; --skip-existing goes on from there",
                1,
            ),
        ),
        (["compare"], signal.SIGTERM, 143, "terminated; nothing was written", 0),
    ],
)
def test_a_signal_ends_in_a_sentence_and_keeps_and_shows_what_is_finished(
    photo_folder, words, number, code, said, rows
):
    pipe = photo_folder / "pipe.png"
    os.mkfifo(pipe)  # a picture that never comes
    process = start(
        *words, "one.png", "pipe.png", cwd=photo_folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with pipe.open("wb"):  # returns when the command has opened it too
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert err == f"mcml: {said}\n"
    assert ("seconds" in out) == bool(rows) and (photo_folder / "one.mcml").exists() == bool(rows)


def test_a_closed_pipe_is_quiet(photo_folder):
    reader, writer = os.pipe()
    os.close(reader)
    process = start("compare", ".", ".", cwd=photo_folder, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == 128 + signal.SIGPIPE


# -------------------------------------------------------------------------------- progress


def test_the_progress_line_names_the_file_and_goes_when_all_is_done(photo_folder):
    terminal, end = pty.openpty()
    words = ("compress", ".", "--quality", "5", "--no-metrics")
    process = start(*words, cwd=photo_folder, stdout=subprocess.PIPE, stderr=end)
    os.close(end)
    out, _ = process.communicate(timeout=60)
    shown = os.read(terminal, 1 << 16).decode()
    os.close(terminal)
    assert process.returncode == 0 and len(out.splitlines()) == 3
    assert "  0 %  1 of 2: one.png" in shown and " 50 %  2 of 2: two.png" in shown
    assert shown.endswith("\x1b[K")


def test_the_progress_line_tells_what_is_done_inside_one_large_picture(tmp_path):
    Image.new("RGB", (1100, 24), (90, 120, 60)).save(tmp_path / "wide.png")  # two tiles
    for words, told in (
        (["compress", "wide.png"], ["0 %  1 of 1: wide.png: analysing", "12 %", "25 %", "coding at quality",
                                    "50 %", "decoding to measure", "60 %", "70 %", "measuring"]),
        (["decompress", "wide.mcml"], ["20 %  1 of 1: wide.mcml: decoding", "60 %"]),
    ):  # fmt: skip
        terminal, end = pty.openpty()
        fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("4H", 24, 120, 0, 0))
        process = start(*words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=end)
        os.close(end)
        process.communicate(timeout=60)
        shown = os.read(terminal, 1 << 16).decode()
        os.close(terminal)
        assert process.returncode == 0
        places = [shown.find(text) for text in told]
        assert places == sorted(places) and min(places) >= 0, shown


def test_the_progress_line_is_as_wide_as_the_terminal_that_shows_it(monkeypatch):
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("4H", 24, 50, 0, 0))
    with os.fdopen(end, "w") as stderr:
        monkeypatch.setattr("sys.stderr", stderr)
        Progress("files").update(0.5, "b" * 100)
    assert (
        os.read(terminal, 1 << 16).decode()
        == "\r\x1b[K" + f"files [##########----------]  50 %  {'b' * 100}"[:49]
    )
    os.close(terminal)


def test_where_stderr_is_no_terminal_lines_come_at_their_pace_and_the_last_one_always(capsys):
    with Progress("files") as silent, Progress("train", every_s=1e9) as progress:
        silent.update(0.5, "b.png")
        for share in (0.25, 0.5, 1.0):
            progress.update(share, f"step {share}")
        progress.say("said")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("train [#####---------------]  25 %  step 0.25")
    assert lines[1].startswith("train [####################] 100 %  step 1.0")
    assert lines[2:] == ["said"]


# ------------------------------------------------------------------------------ completion


@pytest.mark.parametrize(
    "line, among",
    [
        ("mcml com", {"compress", "compare", "completion"}),
        ("mcml compress --qu", {"--quality "}),
        ("mcml compress photo.png --no-m", {"--no-metrics "}),
        ("mcml compress --model scalar_f", {"scalar_fusion "}),
        ("mcml evaluate photos --codecs jpeg444,web", {"jpeg444,webp "}),
        ("mcml compress --effort ", {"normal", "high"}),
        ("mcml compress ph", {"photos/"}),
    ],
)
def test_shells_complete_commands_options_files_and_names(photo_folder, tmp_path, line, among):
    asked = {
        "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "|", "COMP_LINE": line, "COMP_POINT": str(len(line)),
        "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "said"), "_ARGCOMPLETE_SUPPRESS_SPACE": "0",
    }  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **asked}
    subprocess.run([sys.executable, "-m", "mcml"], cwd=tmp_path, env=environment, check=False)
    assert set((tmp_path / "said").read_text().split("|")) == among


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_what_the_shell_reads(mcml, tmp_path, shell):
    script = mcml("completion", shell).stdout
    assert "mcml" in script and "_ARGCOMPLETE" in script
    if shutil.which(shell):
        (tmp_path / "script").write_text(script)
        subprocess.run([shell, "-n", tmp_path / "script"], check=True)


@pytest.mark.parametrize(
    ("number", "code", "word"), [("SIGTERM", 143, "terminated"), ("SIGINT", 130, "interrupted")]
)
def test_a_signal_that_comes_while_a_library_is_imported_waits_for_its_end(tmp_path, number, code, word):
    swallows = f"""
import os, signal, time
try:
    os.kill(os.getpid(), signal.{number})
    time.sleep(0.1)
except BaseException:
    pass
def shellcode(*_, **__):
    time.sleep(5)
    return ""
"""
    (tmp_path / "argcomplete.py").write_text(swallows)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "mcml", "completion", "bash"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, word in ran.stderr) == (code, True), ran.stderr
