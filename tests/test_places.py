"""Where people really run it: one bad file, odd names, streams, pipes, two at once, signals, surroundings."""

import csv
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

import numpy as np
import pytest
from helpers import ROOT, failed, files_of
from PIL import Image

from mcml.base.errors import DataError
from mcml.base.files import lock
from mcml.lab import figures, output, workers

BRIEFLY = ["--quality", "5", "--no-metrics"]
PHOTOGRAPHS = ["one.png", "two.png"]
WEBP = ["--codecs", "webp", "--bpp", "1", "--workers", "1"]
ODD = [os.fsdecode(b"caf\xe9"), "$5_$6 {x}", "~nosuchuser", "new\nline", 'it\'s "q" [red]*', "n" * 246]


def shell(script, cwd, **environment):
    """Run a script in which ``mcml`` is the command line, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    environment = {name: v for name, v in environment.items() if v and name != "PYTHONUNBUFFERED"}
    script = f'set -o pipefail; mcml() {{ "{sys.executable}" -m mcml "$@"; }}; {script}'
    options = {"capture_output": True, "text": True, "errors": "replace", "timeout": 120}
    return subprocess.run(["bash", "-c", script], check=False, cwd=cwd, env=environment, **options)


def needs(*programs):
    """Skip where a program is not there, or may not do what the test asks of it."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not here")
    if (
        "unshare" in programs
        and subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("mounts need root")


@pytest.fixture
def bad_folder(photo_folder):
    """Two good pictures among others that are damaged, empty, text, unfit or broken in their metadata."""
    good = (photo_folder / "one.png").read_bytes()
    for name, content in {
        "cut": good[:999],
        "empty": b"",
        "text": b"no picture",
        "zeros": bytes(999),
    }.items():
        (photo_folder / f"{name}.png").write_bytes(content)
    Image.new("RGBA", (40, 30), (1, 2, 3, 4)).save(photo_folder / "alpha.png")
    return photo_folder


BAD = ["alpha", "cut", "empty", "text", "zeros"]


def told(stderr):
    """Return the names of the files that sentences on stderr are about."""
    return [re.match(r"mcml: (?:.*/)?(\w+)\.\w+: \S", line)[1] for line in stderr.splitlines()]


# ------------------------------------------------------------------------------ one bad file


def test_a_bad_file_is_told_and_the_others_are_compressed_decoded_and_identified(mcml, bad_folder, tmp_path):
    result = mcml("compress", "photos", *BRIEFLY, "-o", "out/")
    assert result.returncode == 1 and told(result.stderr) == BAD
    assert files_of(tmp_path / "out") == ["one.mcml", "two.mcml"]
    good = (tmp_path / "out" / "one.mcml").read_bytes()
    for name, content in {"cut": good[:-3], "empty": b"", "text": b"no", "zeros": bytes(99)}.items():
        (tmp_path / "out" / f"{name}.mcml").write_bytes(content)
    result = mcml("decompress", "out", "-o", "back/")
    assert result.returncode == 1 and sorted(told(result.stderr)) == BAD[1:]
    assert files_of(tmp_path / "back") == PHOTOGRAPHS
    result = mcml("identify", "out", "--json")
    assert result.returncode == 1 and told(result.stderr) == BAD[1:]
    whole = {row["file"] for row in json.loads(result.stdout)["rows"]}
    assert {"out/one.mcml", "out/two.mcml"} <= whole


def test_a_bad_picture_is_left_out_of_a_comparison_and_its_mean(mcml, bad_folder, tmp_path):
    shutil.copytree(bad_folder, tmp_path / "decoded")
    Image.new("RGB", (5, 4)).save(tmp_path / "decoded" / "two.png")  # another size
    result = mcml("compare", "photos", "decoded", "--json")
    assert result.returncode == 1 and sorted(told(result.stderr)) == sorted([*BAD, "two"])
    content = json.loads(result.stdout)
    assert [row["image"] for row in content["rows"]] == ["one"] and content["mean"]["images"] == 1
    result = mcml("compare", "photos/cut.png", "photos/one.png")
    failed(result, 1, "photos/cut.png: ")
    result = mcml("compare", "photos/one.png", "photos/text.png")
    failed(result, 1, "photos/text.png: ")  # the one that is bad


@pytest.mark.parametrize("count", [1, 2])
def test_a_bad_picture_is_left_out_of_a_table_that_says_so(mcml, bad_folder, tmp_path, count):
    result = mcml("evaluate", "photos", *WEBP[:-1], count, "--csv", "t.csv")
    assert result.returncode == 1 and told("\n".join(result.stderr.splitlines()[:5])) == BAD
    assert result.stderr.splitlines()[-1] == "2 rows in t.csv"
    rows = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
    assert [row["image"] for row in rows] == ["one", "two"]
    record = json.loads((tmp_path / "t.csv.run.json").read_text())
    assert record["images"] == 2 and sorted(record["left_out"]) == [f"{name}.png" for name in BAD]
    assert "ended" not in record and len(record["data_hash"]) == 64
    result = mcml("evaluate", *(f"photos/{name}.png" for name in BAD[:2]), *WEBP, "--csv", "no.csv")
    assert result.returncode == 1 and told(result.stderr) == BAD[:2] and not (tmp_path / "no.csv").exists()


def test_a_bad_picture_is_left_out_of_curves(mcml, bad_folder, tmp_path):
    words = ["evaluate", "photos", "--codecs", "webp", "--out", "c", "--at-bpp", "1", "--workers", "1"]
    for _ in range(2):  # and again where the others are there already
        result = mcml(*words, "--json")
        assert result.returncode == 1
        assert sorted(told("\n".join(x for x in result.stderr.splitlines() if x.startswith("mcml: ")))) == BAD
        (row,) = json.loads(result.stdout)["means"]
        assert (row["codec"], row["images"]) == ("webp", 2)


ERRORS = [
    (MemoryError(), "needs more memory than there is"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9"), "needs more memory"),
    (OverflowError("too\nlarge"), "cannot be worked on (too; --debug shows where)"),
    (KeyError("x"), "cannot be worked on ('x'; --debug"),
    (OSError(5, "Input/output error", "/dev/sda"), "cannot be worked on (Input/output error; --debug"),
    (ZeroDivisionError(), "cannot be worked on (without a reason; --debug"),
]
STEPS = {  # a command's words and what does the work on one file
    "compress": (["photos", "-o", "out/", *BRIEFLY], "mcml.codec.learned", "LearnedCodec.encoder"),
    "decompress": (["files", "-o", "out/"], "mcml.codec.learned", "LearnedCodec.decode_detailed"),
    "identify": (["files"], "mcml.codec.container", "describe"),
    "compare": (["photos", "photos"], "mcml.metrics.distortion", "compare"),
    "evaluate": (["photos", *WEBP], "mcml.metrics.distortion", "compare"),
}


@pytest.mark.parametrize(
    "command, error, said",
    [("compare", *one) for one in ERRORS]
    + [(command, *ERRORS[2]) for command in STEPS if command != "compare"],
)
def test_any_error_of_a_library_is_one_file_s_sentence(
    mcml, monkeypatch, photo_folder, tmp_path, command, error, said
):
    words, module, name = STEPS[command]
    if "files" in words:
        mcml("compress", "photos", "-o", "files/", *BRIEFLY)
    owner, _, name = name.rpartition(".")
    owner = getattr(importlib.import_module(module), owner) if owner else importlib.import_module(module)
    real, calls = getattr(owner, name), []

    def fail_at_first(*arguments, **options):
        calls.append(name)
        if len(calls) == 1:
            raise error
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, fail_at_first)
    result = mcml(command, *words)
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("mcml: "))
    assert result.returncode == 1 and re.match(r"mcml: \w+/one\.\w+: ", line) and said in line
    assert "Error" not in result.stderr and "Traceback" not in result.stderr
    assert ("webp" if command == "evaluate" else "two") in result.stdout


def test_debug_shows_the_traceback_of_one_file_s_error_also_out_of_another_process(mcml, bad_folder):
    for words in (["compress", "photos/text.png", *BRIEFLY], ["evaluate", "photos/text.png", *WEBP],
                  ["evaluate", "photos/text.png", "photos/one.png", *WEBP[:-1], 2]):  # fmt: skip
        result = mcml(*words, "--debug")
        assert result.returncode == 1 and "decode_image" in result.stderr and "Traceback" in result.stderr


def test_a_place_that_cannot_be_written_stops_its_own_files_only(mcml, photo_folder, tmp_path):
    shutil.copy(
        photo_folder / "one.png", photo_folder / ("n" * 251 + ".png")
    )  # its output's name is too long
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    result = mcml("compress", "photos", "nowhere.png", *BRIEFLY)
    first, second = result.stderr.splitlines()
    assert result.returncode == 1 and "nowhere.png: no such file" in second
    assert "cannot be written (File name too long); choose a shorter name" in first
    assert {"one.mcml", "two.mcml"} < set(files_of(photo_folder))
    result = mcml("compress", "photos", "-o", "link/x/", *BRIEFLY)
    failed(result, 1, "cannot be written (Not a directory); choose another place")  # once for the folder


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_closed_stops_its_own_files_only(mcml, photo_folder, tmp_path):
    (tmp_path / "closed").mkdir()
    shutil.copy(photo_folder / "one.png", tmp_path / "closed")
    (tmp_path / "closed").chmod(0o555)
    result = mcml("compress", "closed", "photos/two.png", *BRIEFLY)
    assert result.returncode == 1 and "closed/one.mcml: cannot be written (Permission" in result.stderr
    assert (photo_folder / "two.mcml").exists()


# ------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("name", ODD)
def test_any_name_is_compressed_identified_decoded_compared_and_evaluated(mcml, photo_folder, tmp_path, name):
    folder = tmp_path / "odd"
    folder.mkdir()
    try:
        shutil.copy(photo_folder / "one.png", folder / f"{name}.png")
    except OSError:
        pytest.skip("this file system does not take the name")
    seen = name.replace(os.fsdecode(b"\xe9"), r"\xe9")
    assert mcml("compress", folder, *BRIEFLY).returncode == 0
    (row,) = json.loads(mcml("identify", folder, "--json").stdout)["rows"]
    assert row["file"] == f"{folder}/{seen}.mcml"
    assert mcml("decompress", folder, "-o", "back/").returncode == 0
    (row,) = json.loads(mcml("compare", folder, "back", "--json").stdout)["rows"]
    assert row["image"] == seen
    words = ["evaluate", "odd", *WEBP, "--csv", "t.csv"]
    assert mcml(*words).returncode == 0
    (row,) = csv.DictReader((tmp_path / "t.csv").open(encoding="utf-8", newline=""))
    assert row["image"] == seen
    words = ["evaluate", "odd", "--codecs", "webp", "--out", "c", "--at-bpp", "1", "--workers", "1"]
    for _ in range(2):
        assert mcml(*words).returncode == 0
    rows = list(csv.DictReader((tmp_path / "c" / "points.csv").open(encoding="utf-8", newline="")))
    assert {row["image"] for row in rows} == {seen} and len(rows) == len({row["quality"] for row in rows})
    assert "\n".join(files_of(tmp_path)).count("mcml") == 1  # no scratch file is left


@pytest.mark.parametrize("name", ["1", "007", "nan", "NA", "1e3", "True"])
def test_names_that_look_like_numbers_or_nothing_are_names_in_curves(mcml, photo_folder, tmp_path, name):
    (photo_folder / "one.png").rename(photo_folder / f"{name}.png")
    words = ["evaluate", "photos", "--codecs", "webp", "--out", "c", "--at-bpp", "1", "--workers", "1"]
    points = []
    for _ in range(2):
        assert mcml(*words).returncode == 0
        points.append((tmp_path / "c" / "points.csv").read_text())
    assert points[0] == points[1] and f"\n{name},webp," in points[0]


def test_a_control_character_of_a_name_reaches_no_screen(mcml, photo_folder, tmp_path):
    (photo_folder / "one.png").rename(tmp_path / "a\x1b[31m\nb.png")
    result = mcml("compress", "a\x1b[31m\nb.png", *BRIEFLY)
    assert result.returncode == 0 and "\x1b" not in result.stdout and r"a\x1b[31m" in result.stdout
    for words in (["compress", "\x1b[31m\nb.png"], ["evaluate", "x\x1b\ny.png", *WEBP], ["\x1b[1m\n"]):
        result = mcml(*words)
        assert "\x1b" not in result.stderr and result.stderr.count("\n") == 1 and r"\x1b" in result.stderr


def test_names_after_two_dashes_are_names(mcml, photo_folder, tmp_path):
    for name in ("-x.png", "--json.png"):
        shutil.copy(photo_folder / "one.png", tmp_path / name)
        assert mcml("compress", *BRIEFLY, "--", name).returncode == 0
        assert (tmp_path / name).with_suffix(".mcml").is_file()
    assert mcml("compare", "--json", "--", "-x.png", "--json.png").returncode == 0


def test_a_table_whose_record_has_too_long_a_name_is_told_before_work(mcml, photo_folder):
    sentence = "cannot be written (File name too long); choose a shorter name"
    failed(mcml("evaluate", "photos", *WEBP, "--csv", "n" * 246 + ".csv"), 1, sentence)


@pytest.mark.parametrize(
    "name", ["price_$5_$6", r"a\$b$", "$x^{$", "_under", "{x} % ~ #", os.fsdecode(b"caf\xe9")]
)
def test_names_are_drawn_as_they_are(name):
    figures.use_style()
    picture = np.zeros((24, 32, 3), np.uint8)
    figure = figures.gallery(
        {name: picture, "other": picture}, title=name.encode("utf-8", "replace").decode()
    )
    figure.canvas.draw()
    titles = {ax.get_title() for ax in figure.axes}
    assert titles == {name.replace(os.fsdecode(b"\xe9"), r"\xe9"), "other"}
    assert not any(ax.title.get_parse_math() for ax in figure.axes)


def test_a_logarithmic_axis_has_powers_of_ten_without_mathtext():
    figures.use_style()
    figure, ((left, right),) = figures.panels(1, 2, 8, 3)
    left.set(xscale="log", xlim=(0.003, 300))
    right.set(yscale="log", ylim=(2, 7))
    figure.canvas.draw()
    ticks = [t.get_text() for axis in (left.xaxis, right.yaxis) for t in axis.get_ticklabels(which="both")]
    assert {"10⁻²", "10⁰", "10²", "2×10⁰", "6×10⁰"} <= set(ticks) and "$" not in "".join(ticks)


# ----------------------------------------------------------------------------------- streams


@pytest.mark.parametrize(
    "script, code, said",
    [
        ("mcml compare one.png one.png >&-", 1, "standard output: cannot be written (Bad file descriptor)"),
        ("mcml compare one.png one.png >/dev/full", 1, "standard output: cannot be written (No space left"),
        ("mcml --help >/dev/full", 1, "standard output: cannot be written (No space left"),
        ("PYTHONUNBUFFERED=1 mcml identify . >/dev/full", 1, "holds no .mcml file"),
        ("mcml compare one.png none.png 2>&-", 1, ""),
        ("mcml compare one.png none.png 2>/dev/full", 1, ""),
        ("mcml compare one.png one.png <&- >/dev/null", 0, ""),
        ("mcml compare one.png one.png <&- >&- 2>&-", 1, ""),
        ("mcml data | true; echo ${PIPESTATUS[0]} >&2", 0, "141"),
        ("(sleep 0.1; mcml compress one.png --quality 5 --no-metrics) | true", 141, ""),
    ],
)  # fmt: skip
def test_standard_streams_that_are_closed_full_or_left_early(photo_folder, script, code, said):
    result = shell(script, photo_folder)
    assert result.returncode == code, result.stderr
    assert said in result.stderr and result.stderr.count("\n") == bool(said)
    assert not result.stdout or "<&- >/dev/null" in script
    if "compress" in script:
        assert (photo_folder / "one.mcml").exists()  # what was to be made is made


@pytest.mark.parametrize(
    "environment, seen",
    [
        ({"PYTHONIOENCODING": "ascii"}, r"\xe9t\xe9"),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, r"\xe9t\xe9"),
        ({"LC_ALL": "xx_XX.nothing", "PYTHONUTF8": "", "COLUMNS": "-3"}, "été"),
    ],
)
def test_a_terminal_that_lacks_letters_gets_them_spelled(photo_folder, environment, seen):
    shutil.copy(photo_folder / "one.png", photo_folder / "été.png")
    result = shell("mcml compare été.png été.png && mcml compare été.png nö.png", photo_folder, **environment)
    assert result.returncode == 1 and seen in result.stdout
    assert result.stderr.endswith(": no such file or folder\n") and "mcml: n" in result.stderr


@pytest.mark.parametrize("columns", ["0", "1", "-3", "x", "", "99999999"])
def test_any_width_of_the_terminal_is_one(mcml, photo_folder, columns):
    for words in (["--help"], ["compress", "--help"], ["compare", "photos", "photos"]):
        result = mcml(*words, COLUMNS=columns)
        assert (result.returncode, result.stderr) == (0, "") and len(result.stdout) > 100


# ------------------------------------------------------------------------------------- pipes


@contextmanager
def piped(path):
    """Give the name of a pipe that holds a file's bytes, as the shell's <(cat path) does."""
    reader, writer = os.pipe()
    os.write(writer, path.read_bytes())
    os.close(writer)
    yield f"/dev/fd/{reader}"
    os.close(reader)


def test_pipes_are_read_once_and_written_to(mcml, photo_folder, tmp_path):
    picture, file = photo_folder / "one.png", tmp_path / "a.mcml"
    with piped(picture) as pipe:
        assert mcml("compress", pipe, "-o", "a.mcml", *BRIEFLY).returncode == 0
    with piped(file) as pipe:
        assert mcml("decompress", pipe, "-o", "a.png").returncode == 0
    with piped(file) as pipe:
        assert "160 x 128" in mcml("identify", pipe).stdout
    with piped(file) as pipe, piped(tmp_path / "a.png") as other:
        assert json.loads(mcml("compare", other, pipe, "--json").stdout)["rows"][0]["mse"] == 0
    for words in ([], ["photos/two.png"]):
        with piped(picture) as pipe:
            failed(
                mcml("evaluate", *words, pipe, *WEBP), 1, f"{pipe}: is a pipe or a device, which every codec"
            )
    os.mkfifo(tmp_path / "out.mcml")
    reader = os.open(tmp_path / "out.mcml", os.O_RDONLY | os.O_NONBLOCK)
    assert mcml("compress", picture, "-o", "out.mcml", *BRIEFLY).returncode == 0
    assert os.read(reader, 1 << 16) == file.read_bytes() and (tmp_path / "out.mcml").is_fifo()
    os.close(reader)


def test_outputs_that_are_links_or_devices_stay_so(mcml, photo_folder, tmp_path):
    for name, target in (("a.mcml", "real.mcml"), ("null.mcml", os.devnull)):
        (tmp_path / name).symlink_to(target)
        assert mcml("compress", "photos/one.png", "-o", name, *BRIEFLY).returncode == 0
        assert (tmp_path / name).is_symlink()
    assert (tmp_path / "real.mcml").read_bytes().startswith(b"MCML")
    failed(mcml("compress", "photos/one.png", "-o", "a.mcml", *BRIEFLY), 2, "a.mcml exists")
    failed(
        mcml("compress", "photos/one.png", "-o", "/dev/stdout"), 2, "/dev/stdout: expected a name in .mcml"
    )


# --------------------------------------------------------------------------------- two at once


@pytest.mark.parametrize("command", ["compress", "decompress", "evaluate"])
def test_the_second_of_two_writers_is_told(mcml, monkeypatch, photo_folder, tmp_path, command):
    """The other's file comes while this one works: between the check and the end."""
    mcml("compress", "photos/one.png", "-o", "x.mcml", *BRIEFLY)
    words, made = {
        "compress": (["photos/one.png", "-o", "y.mcml", *BRIEFLY], "y.mcml"),
        "decompress": (["x.mcml", "-o", "y.png"], "y.png"),
        "evaluate": (["photos/one.png", *WEBP, "--csv", "y.csv"], "y.csv"),
    }[command]
    fsync = os.fsync

    def slow(handle):
        (tmp_path / made).write_text("the other's")
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", slow)
        result = mcml(command, *words)
    assert result.returncode == 1 and f"{made}: another program made it meanwhile" in result.stderr
    assert (tmp_path / made).read_text() == "the other's"
    assert command != "evaluate" or "webp" in result.stdout  # the measured means are not lost
    assert mcml(command, *words, "--overwrite").returncode == 0
    assert (tmp_path / made).read_bytes()[:5] != b"the o"


def test_a_second_run_that_adds_to_the_same_curves_is_told(mcml, photo_folder, tmp_path):
    (tmp_path / "c").mkdir()
    with lock(tmp_path / "c", pytest.fail):
        result = mcml("evaluate", "photos", "--codecs", "webp", "--out", "c", "--workers", "1")
        failed(result, 1, "c: another run is adding to it; wait for its end, or name another folder")
    (tmp_path / "c" / "run.json").write_text("{")
    result = mcml("evaluate", "photos", "--codecs", "webp", "--out", "c", "--workers", "1")
    failed(result, 1, "c: its run.json or points.csv is damaged; name another folder")


# --------------------------------------------------------------------------------- interrupts


SLOW = ["evaluate", "photos", "--codecs", "webp,jpegxl", "--bpp", "0.4", "--workers", "1"]


@pytest.mark.parametrize(
    "words, number, begun, said",
    [
        ([*SLOW, "--csv", "t.csv"], signal.SIGINT, 2, r"the (\d+) rows that were finished are in t\.csv"),
        (SLOW, signal.SIGTERM, 0, "nothing was written"),
        (["evaluate", "photos", "--codecs", "webp,jpegxl", "--workers", "1", "--out", "c"], signal.SIGINT, 2,
         "what was finished is kept in c; the same command goes on from there"),
    ],
)  # fmt: skip
def test_what_evaluate_says_after_a_signal_is_true(photo_folder, tmp_path, words, number, begun, said):
    code = """
import os, signal
from functools import partial
from mcml.lab import evaluate, curves
from mcml.cli import main
left = [BEGUN]
def wait(path, name, *more, call):
    if not left[0]:
        os.write(1, b"now\\n"); signal.pause()
    left[0] -= 1
    return call(path, name, *more)
evaluate._image_rows = partial(wait, call=evaluate._image_rows)
curves.picture_curve = partial(wait, call=curves.picture_curve)
main.main()
""".replace("BEGUN", str(begun))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", code, *words], cwd=tmp_path, env=environment, **pipes)
    assert process.stdout.readline() == "now\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    match = re.search(rf"mcml: (interrupted|terminated); {said}\n$", err)
    assert match and not out, err
    if "--csv" in words:
        rows = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
        assert len(rows) == int(match[2]) == begun
        assert json.loads((tmp_path / "t.csv.run.json").read_text())["ended"] == "interrupted"
    elif "--out" in words:
        assert len((tmp_path / "c" / "points.csv").read_text().splitlines()) > 2
    else:
        assert files_of(tmp_path) == [f"photos/{name}" for name in PHOTOGRAPHS]


def test_curves_go_on_from_a_folder_where_nothing_was_finished(mcml, photo_folder, tmp_path):
    words = ["evaluate", "photos", "--codecs", "webp", "--out", "c", "--at-bpp", "1", "--workers", "1"]
    assert mcml(*words).returncode == 0
    whole = (tmp_path / "c" / "points.csv").read_text()
    (tmp_path / "c" / "points.csv").write_text("\n")
    assert mcml(*words).returncode == 0 and (tmp_path / "c" / "points.csv").read_text() == whole


# ------------------------------------------------------------------------------- surroundings


def make_repository(folder):
    git = ["git", "-c", "user.email=a@b", "-c", "user.name=n", "-C", folder]
    subprocess.run(["git", "init", "-q", folder], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    return subprocess.run(
        [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_the_commit_is_this_checkout_s_own_or_unknown(tmp_path, monkeypatch):
    needs("git")
    foreign, own = make_repository(tmp_path), output._git("rev-parse", "HEAD")
    inside = tmp_path / "mcml"
    inside.mkdir()
    foreign_places = {
        "GIT_DIR": tmp_path / ".git",
        "GIT_WORK_TREE": tmp_path,
        "GIT_COMMON_DIR": tmp_path / ".git",
    }
    for variable, value in foreign_places.items():
        with monkeypatch.context() as patch:
            patch.setenv(variable, str(value))
            assert output._git("rev-parse", "HEAD") == own != foreign
    monkeypatch.setattr(output, "repo_root", lambda: inside)
    assert output._git("rev-parse", "HEAD") == ""  # the repository around it is another's
    (inside / ".git").write_text("damaged")
    assert output._git("rev-parse", "HEAD") == ""
    (inside / ".git").unlink()
    assert output._git("rev-parse", "HEAD") == "" and make_repository(inside) == output._git(
        "rev-parse", "HEAD"
    )
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert output.provenance()["commit"] == "unknown"


@pytest.mark.parametrize("after", [0, 2])
@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        BrokenPipeError(),
        PermissionError(),
        BrokenProcessPool("ended"),
    ],
)
def test_calls_are_made_where_no_process_can_be_had(monkeypatch, error, after):
    class Broken:  # joblib where the system refuses it something, at once or later
        def __init__(self, *_, **__):
            pass

        def __call__(self, tasks):
            for number, (function, arguments, options) in enumerate(tasks):
                if number == after:
                    raise error
                yield function(*arguments, **options)

    monkeypatch.setattr(workers.joblib, "Parallel", Broken)
    calls, seen = [lambda n=n: n for n in range(4)], []
    if isinstance(error, BrokenProcessPool):  # a process was killed: its call may have been why
        with pytest.raises(
            DataError, match="the system ended one of 2 processes, most often for want of memory"
        ):
            workers.side_by_side(calls, 2, keep=seen.append)
        assert seen == list(range(after))
    else:
        assert workers.side_by_side(calls, 2, keep=seen.append) == seen == [0, 1, 2, 3]


@pytest.mark.parametrize("mount", ["-o ro", "-o size=4k"])
def test_evaluate_runs_where_shared_memory_is_closed_or_small(photo_folder, mount):
    needs("unshare", "mount")
    script = f"""unshare -m bash -c 'mount -t tmpfs {mount} tmpfs /dev/shm
"$0" -m mcml evaluate . --codecs webp --bpp 1 --workers 2' '{sys.executable}'"""
    result = shell(script, photo_folder)
    assert result.returncode == 0 and "webp" in result.stdout and "Traceback" not in result.stderr, (
        result.stderr
    )


def test_a_folder_that_is_gone_is_told(photo_folder):
    result = shell("mkdir gone; cd gone; rmdir ../gone; mcml compare ../one.png ../two.png", photo_folder)
    assert (
        result.returncode == 1
        and result.stderr == "mcml: the current folder is gone; change to one that is there\n"
    )


def test_a_full_disk_leaves_nothing_and_is_told(photo_folder):
    needs("unshare", "mount")
    Image.effect_noise((256, 192), 90).convert("RGB").save(photo_folder / "one.png")
    script = f"""mkdir t; unshare -m bash -c 'mount -t tmpfs -o size=8k tmpfs t
"$0" -m mcml compress one.png -o t/x.mcml --rate 90 --no-metrics; echo $?; ls -A t' '{sys.executable}'"""
    result = shell(script, photo_folder)
    assert result.stdout == "1\n", result.stderr
    assert result.stderr.endswith(
        "cannot be written (No space left on device); free some space or choose another place\n"
    )


@pytest.mark.parametrize("variable", ["unset", "/proc/nowhere"])
def test_commands_need_no_home(photo_folder, variable):
    script = "unset HOME; " * (variable == "unset") + "mcml evaluate . --codecs webp --bpp 1 --workers 1"
    result = shell(script, photo_folder, HOME=variable, TMPDIR="/nonexistent")
    assert result.returncode == 0 and "Error" not in result.stderr, result.stderr
