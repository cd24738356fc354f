"""Files from the command line: compress, decompress and identify as a user meets them."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from data.test_images import BLUE, GREEN, RED, icc
from PIL import Image

from mcml.cli import main as cli
from mcml.codec import container as bitstream
from mcml.codec import interface as codec
from mcml.codec.learned import LearnedCodec
from mcml.data import images
from mcml.data.images import read_image
from mcml.lab import evaluate as evaluation
from mcml.lab.output import format_value
from mcml.metrics import distortion as metrics

COLUMNS = ["image", "size", "bytes", "bpp", "quality", "psnr", "ms_ssim", "ciede2000", "seconds"]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run the command line in this process and a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("_TYPER_FORCE_DISABLE_TERMINAL", "1")
    handler = signal.getsignal(signal.SIGINT)

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["mcml", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return SimpleNamespace(returncode=ended.value.code, stdout=out, stderr=err)

    yield call
    signal.signal(signal.SIGINT, handler)


@pytest.fixture(scope="module")
def fusion():
    return LearnedCodec("fusion")


@pytest.fixture(scope="module")
def crop(astronaut):
    """Lines 16 to 80 of a face: 96 x 64 pixels."""
    return np.ascontiguousarray(astronaut[16:80, 40:136])


@pytest.fixture(scope="module")
def files(fusion, crop):
    """One picture's files of each kind."""
    return {
        "flat": fusion.encode(crop, 60),
        "adaptive": fusion.encode(crop, 60, adaptive=True),
        "layered": fusion.encode(crop, 60, layers=3),
        "all": fusion.encode(crop, 60, adaptive=True, layers=2, tile_px=64),
    }


@pytest.fixture
def folder(tmp_path, crop):
    """Two small PNGs and a file that is no picture."""
    path = tmp_path / "photos"
    path.mkdir()
    Image.fromarray(crop).save(path / "one.png")
    Image.fromarray(np.ascontiguousarray(crop[::-1, :72])).save(path / "two.png")
    (path / "notes.txt").write_text("no picture")
    return path


def files_of(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def table(result):
    header, *lines = (line.split() for line in result.stdout.splitlines())
    return [dict(zip(header, line, strict=True)) for line in lines]


def failed(result, code, *words):
    """Assert one sentence on stderr and nothing else."""
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    assert result.stderr.startswith("mcml: ") and result.stderr.count("\n") == 1, result.stderr
    for word in words:
        assert word in result.stderr


# --------------------------------------------------------------------------------- compress


def test_compress_and_decompress_are_the_codec_and_the_table_its_measures(run, folder, tmp_path, fusion):
    result = run("compress", "photos/one.png", "--bpp", "0.25")
    assert (result.returncode, result.stderr) == (0, "")
    image, data = read_image(folder / "one.png"), (folder / "one.mcml").read_bytes()
    found = fusion.search(image, 0.25)
    assert found.reached and data == found.data
    decoded = fusion.decode(data)
    (row,) = table(result)
    assert list(row) == COLUMNS
    assert float(row.pop("seconds")) > 0
    expected = {"image": "photos/one.png", "size": "96x64", "bytes": len(data), "bpp": found.bpp,
                "quality": found.quality, **vars(metrics.compare(image, decoded))}  # fmt: skip
    assert row == {name: format_value(name, expected[name]) for name in row}

    result = run("decompress", "photos/one.mcml", "-o", "back.png")
    assert (result.returncode, result.stderr) == (0, "")
    with Image.open(tmp_path / "back.png") as back:
        assert (back.format, back.mode) == ("PNG", "RGB")
        np.testing.assert_array_equal(np.asarray(back), decoded)
    (row,) = table(result)
    assert (row["file"], row["output"], row["size"]) == ("photos/one.mcml", "back.png", "96x64")
    photos = ["notes.txt", "one.mcml", "one.png", "two.png"]
    assert files_of(tmp_path) == ["back.png", *(f"photos/{name}" for name in photos)]


def test_without_rate_or_bpp_files_have_0_3_bpp(run, folder, fusion):
    assert run("compress", "photos/one.png", "--no-metrics").returncode == 0
    image = read_image(folder / "one.png")
    assert (folder / "one.mcml").read_bytes() == fusion.search(image, 0.3).data


@pytest.mark.parametrize(
    "options, kind", [([], "flat"), (["--adaptive"], "adaptive"), (["--layers", 3], "layered")]
)
def test_rate_and_options_reach_the_encoder(run, folder, files, tmp_path, options, kind):
    result = run("compress", "photos/one.png", "--rate", 60, "--no-metrics", "-o", "x.mcml", *options)
    assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "x.mcml").read_bytes() == files[kind]
    (row,) = table(result)
    assert list(row) == [name for name in COLUMNS if name not in ("psnr", "ms_ssim", "ciede2000")]


def test_another_model_is_taken_by_name_or_folder(run, folder, tmp_path):
    (tmp_path / "fusion").mkdir()  # does not hide the released model of this name
    for number, model in enumerate(("independent", LearnedCodec("independent").folder, "fusion")):
        result = run("compress", "photos/one.png", "--rate", 30, "--model", model, "-o", f"{number}.mcml")
        assert result.returncode == 0, result.stderr
    made = [(tmp_path / f"{number}.mcml").read_bytes() for number in range(3)]
    assert made[0] == made[1] == LearnedCodec("independent").encode(read_image(folder / "one.png"), 30)
    assert run("decompress", *(f"{number}.mcml" for number in range(3))).returncode == 0
    result = run("decompress", "0.mcml", "--model", "fusion", "--overwrite")
    failed(result, 1, "0.mcml: the file was written by model")


def test_target_out_of_reach_gives_the_nearest_file_and_says_why(run, folder, fusion):
    result = run("compress", "photos/one.png", "--bpp", 9, "--no-metrics")
    assert result.returncode == 0
    image, data = read_image(folder / "one.png"), (folder / "one.mcml").read_bytes()
    low, high = (codec.bits_per_pixel(fusion.encode(image, end), image) for end in (0, 100))
    assert data == fusion.encode(image, 100)
    assert result.stderr == (
        f"note: photos/one.png: {fusion.search(image, 9).explain('fusion')}; "
        f"on this image it reaches {low:.4f} to {high:.4f} bpp\n"
    )


def test_target_between_two_sizes_of_a_tiny_picture_says_that_steps_are_coarse(run, crop, tmp_path, fusion):
    tiny = np.ascontiguousarray(crop[:8, :8])
    Image.fromarray(tiny).save(tmp_path / "tiny.png")
    pieces, _ = fusion.analyse(tiny)
    sizes = sorted({len(fusion.pack((8, 8), pieces, quality).data) for quality in np.linspace(0, 100, 401)})
    gap = max(range(len(sizes) - 1), key=lambda i: sizes[i + 1] / sizes[i])
    assert sizes[gap + 1] / sizes[gap] > 1.05
    result = run("compress", "tiny.png", "--bpp", (sizes[gap] + sizes[gap + 1]) / 2 / 8, "--no-metrics")
    assert result.returncode == 0
    assert len((tmp_path / "tiny.mcml").read_bytes()) in sizes[gap : gap + 2]
    assert result.stderr.startswith("note: tiny.png: fusion: nearest to")
    assert result.stderr.endswith(" bpp, in steps that are coarse on so few pixels\n")


# -------------------------------------------------------------------------- inputs, outputs


@pytest.mark.parametrize(
    "words",
    [["photos"], ["photos/*.png"], ["photos/one.png", "photos/two.png"], ["photos/two.png", "./photos"]],
)
def test_files_folders_and_patterns_name_each_image_once(run, folder, tmp_path, words):
    result = run("compress", *words, "--rate", 20, "--no-metrics", "-o", "new/deep")
    assert (result.returncode, result.stderr) == (0, "")
    assert files_of(tmp_path / "new") == ["deep/one.mcml", "deep/two.mcml"]
    assert len(table(result)) == 2
    result = run("decompress", "new/deep", "-o", "back")
    assert (result.returncode, result.stderr) == (0, "")
    assert files_of(tmp_path / "back") == ["one.png", "two.png"]


def test_output_of_one_image_is_a_file_unless_it_is_or_ends_as_a_folder(run, folder, tmp_path):
    (tmp_path / "there").mkdir()
    for output in ("new/", "there", "a/b.mcml"):
        assert run("compress", "photos/one.png", "--rate", 5, "--no-metrics", "-o", output).returncode == 0
    assert files_of(tmp_path)[:2] == ["a/b.mcml", "new/one.mcml"]
    assert "there/one.mcml" in files_of(tmp_path)
    (tmp_path / "photos" / "one.png").rename(tmp_path / "br[1].png")  # a file, not a pattern
    assert run("compress", "br[1].png", "--rate", 5, "--no-metrics", "-o", "c.mcml").returncode == 0
    assert (tmp_path / "c.mcml").is_file()


def test_nothing_is_overwritten_unless_told_and_every_output_is_checked_before_work(run, folder):
    (folder / "two.mcml").write_text("mine")
    failed(run("compress", "photos"), 2, "photos/two.mcml exists: give --overwrite to replace it")
    assert (folder / "two.mcml").read_text() == "mine" and not (folder / "one.mcml").exists()
    assert run("compress", "photos", "--rate", 5, "--no-metrics", "--overwrite").returncode == 0
    assert (folder / "two.mcml").read_bytes().startswith(b"MCML")
    before = (folder / "one.png").read_bytes()
    failed(run("decompress", "photos"), 2, "photos/one.png exists: give --overwrite")
    assert (folder / "one.png").read_bytes() == before
    assert run("decompress", "photos", "--overwrite").returncode == 0
    assert (folder / "one.png").read_bytes() != before


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["photos/one.png", "one.jpg", "-o", "x/"], "one.png and one.jpg would both become x/one.mcml"),
        (["photos/one.png", "-o", "photos/one.png", "--overwrite"], "photos/one.png is an input"),
        (["photos/one.png", "-o", "new.png"], "--output new.png: compress writes .mcml files"),
        (["photos/one.png", "-o", "plain"], "--output plain: compress writes .mcml files"),
        (
            ["photos", "-o", "all.mcml"],
            "--output all.mcml: several inputs need a folder: end its name with /",
        ),
        (["photos", "-o", "one.jpg"], "--output one.jpg is a file: several inputs need a folder"),
        (["photos/*.png", "-o", "one.jpg"], "several inputs need a folder"),
        (["photos/one.png", "--bpp", "0.3", "--rate", "3"], "--bpp and --rate: give one of them"),
        (["photos/one.png", "--bpp", "0"], "--bpp 0: expected bits per pixel above 0"),
        (["photos/one.png", "--bpp", "nan"], "--bpp nan: expected"),
        (["photos/one.png", "--rate", "100.5"], "--rate 100.5: expected a percentage from 0 to 100"),
        (["photos/one.png", "--rate", "nan"], "--rate nan: expected"),
        (["photos/one.png", "--model", "fusoin"], "unknown model 'fusoin': did you mean 'fusion'"),
        (["photos/one.png", ""], "an input's name is empty"),
        (["one.jpg"], "one.mcml is a folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_in_usage_stop_before_any_work(run, folder, crop, tmp_path, words, sentence):
    Image.fromarray(crop).save(tmp_path / "one.jpg")
    (tmp_path / "one.mcml").mkdir()
    before = files_of(tmp_path)
    failed(run("compress", *words), 2, sentence)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("output", ["x.jpg", "x.mcml", "x"])
def test_only_png_is_written(run, tmp_path, files, output):
    (tmp_path / "a.mcml").write_bytes(files["flat"])
    failed(run("decompress", "a.mcml", "-o", output), 2, output, "PNG, which loses nothing")
    assert files_of(tmp_path) == ["a.mcml"]


def test_options_that_are_no_numbers_in_range_are_refused(run, folder):
    for words in (
        ["compress", "photos", "--layers", 0],
        ["decompress", "photos", "--layers", "x"],
        ["identify"],
    ):
        result = run(*words)
        assert (result.returncode, result.stdout) == (2, "")
        assert "Traceback" not in result.stderr


def test_place_that_cannot_be_written_is_named_before_work(run, folder, tmp_path):
    before = files_of(tmp_path)
    failed(run("compress", "photos", "-o", "photos/notes.txt/x/"), 1, "notes.txt/x", "cannot be written")
    assert files_of(tmp_path) == before


def test_names_with_bytes_that_are_no_text_are_read_and_shown(run, crop, tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    try:
        Image.fromarray(crop).save(tmp_path / name)
    except OSError:
        pytest.skip("this file system takes names of UTF-8 only")
    result = run("compress", name, "--rate", 5, "--no-metrics")
    assert result.returncode == 0
    assert table(result)[0]["image"] == "caf\ufffd.png"
    assert (tmp_path / os.fsdecode(b"caf\xe9.mcml")).exists()


# --------------------------------------------------------------------------------- pictures


def test_pictures_without_one_right_reading_are_refused_and_the_others_compressed(
    run, folder, crop, tmp_path
):
    photo = Image.fromarray(crop)
    alpha = photo.copy()
    alpha.putalpha(100)
    alpha.save(folder / "alpha.png")
    photo.convert("CMYK").save(folder / "cmyk.jpg")
    photo.save(folder / "moving.webp", save_all=True, append_images=[photo.rotate(90)])
    header = f"P6 {crop.shape[1]} {crop.shape[0]} 65535\n".encode()
    (folder / "deep.ppm").write_bytes(header + (crop.astype(">u2") * 257).tobytes())
    (folder / "cut.png").write_bytes((folder / "one.png").read_bytes()[:900])
    result = run("compress", "photos", "none.png", "*.gif", "empty*/", "-o", "out", "--rate", 10)
    assert result.returncode == 1
    assert [row["image"] for row in table(result)] == ["photos/one.png", "photos/two.png"]
    assert files_of(tmp_path / "out") == ["one.mcml", "two.mcml"]
    lines = result.stderr.splitlines()
    assert all(line.startswith("mcml: ") for line in lines)
    wanted = [
        *("*.gif: no file has a name", "empty*/: no file", "alpha.png: has transparent", "cmyk.jpg: CMYK"),
        *("cut.png: damaged", "deep.ppm: 16 bits", "moving.webp: holds 2 frames", "none.png: no such file"),
    ]
    assert len(lines) == len(wanted)
    for line, words in zip(lines, wanted, strict=True):
        assert words in line


def test_orientation_and_profile_are_followed(run, crop, tmp_path, fusion):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    photo = Image.fromarray(crop)
    photo.save(tmp_path / "turned.png", exif=exif)
    wide = icc("wide", (RED, GREEN, BLUE), gamma=1.0)
    photo.save(tmp_path / "wide.png", icc_profile=wide)
    Image.fromarray(crop[..., 0].astype(np.uint16) * 257).save(tmp_path / "grey16.png")
    result = run("compress", "turned.png", "wide.png", "grey16.png", "--rate", 30, "--no-metrics")
    assert (result.returncode, result.stderr) == (0, "")
    assert [row["size"] for row in table(result)] == ["64x96", "96x64", "96x64"]
    assert (tmp_path / "turned.mcml").read_bytes() == fusion.encode(np.rot90(crop, -1).copy(), 30)
    moved = read_image(tmp_path / "wide.png")
    assert np.abs(moved.astype(int) - crop).max() > 5
    assert (tmp_path / "wide.mcml").read_bytes() == fusion.encode(moved, 30)
    grey = np.repeat(crop[..., :1], 3, axis=2)
    assert (tmp_path / "grey16.mcml").read_bytes() == fusion.encode(grey, 30)


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (1, 40)])
def test_tiny_pictures_come_back_in_their_size(run, crop, tmp_path, size):
    Image.fromarray(crop[: size[0], : size[1]]).save(tmp_path / "tiny.png")
    result = run("compress", "tiny.png", "--rate", 50)
    assert (result.returncode, result.stderr) == (0, "")
    assert run("decompress", "tiny.mcml", "--overwrite").returncode == 0
    assert read_image(tmp_path / "tiny.png").shape == (*size, 3)


# ------------------------------------------------------------------------------- decompress


def test_layers_and_luma_only_reach_the_decoder(run, tmp_path, files, fusion):
    (tmp_path / "a.mcml").write_bytes(files["all"])
    for words, options, layers in (
        (["--layers", 1], {"layers": 1}, "1/2"),
        (["--layers", 9], {}, "2/2"),
        (["--luma-only"], {"luma_only": True}, "2/2"),
    ):
        result = run("decompress", "a.mcml", *words, "--overwrite")
        assert (result.returncode, result.stderr) == (0, "")
        assert table(result)[0]["layers"] == layers
        np.testing.assert_array_equal(read_image(tmp_path / "a.png"), fusion.decode(files["all"], **options))
    grey = read_image(tmp_path / "a.png")
    assert (grey[..., 0] == grey[..., 2]).all()


def test_cut_file_is_refused_or_decoded_as_far_as_it_goes(run, tmp_path, files, fusion):
    cut = files["layered"][:-6]
    (tmp_path / "cut.mcml").write_bytes(cut)
    failed(
        run("decompress", "cut.mcml"),
        1,
        "cut.mcml: the file ends within chunk",
        "--partial decodes what is whole",
    )
    assert files_of(tmp_path) == ["cut.mcml"]
    result = run("decompress", "cut.mcml", "--partial")
    assert result.returncode == 0
    assert result.stderr == "note: cut.mcml: cut short or damaged: 2 of 3 layers are whole\n"
    np.testing.assert_array_equal(read_image(tmp_path / "cut.png"), fusion.decode(cut, partial=True))
    (tmp_path / "cut.mcml").write_bytes(cut[:40])
    failed(run("decompress", "cut.mcml", "--partial", "--overwrite"), 1, "before its first stream is whole")
    result = run("decompress", "cut.mcml", "--overwrite")
    failed(result, 1, "ends within chunk 1")
    assert "--partial" not in result.stderr


DAMAGES = {
    "empty": (lambda data: b"", "the file is empty"),
    "picture": (lambda data: b"\x89PNG\r\n" + data, "not an mcml file: it does not begin with 'MCML'"),
    "short": (lambda data: data[:15], "the file ends within its header, after 15 bytes"),
    "version": (lambda data: data[:4] + b"\x09" + data[5:], "format version 9: this mcml reads version 1"),
    "bit": (lambda data: data[:50] + bytes([data[50] ^ 4]) + data[51:], "is damaged: its checksum differs"),
    "tail": (lambda data: data + b"abc", "3 bytes follow the last chunk"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_files_are_refused_with_a_sentence_and_others_go_on(run, tmp_path, files, kind):
    damage, sentence = DAMAGES[kind]
    (tmp_path / "bad.mcml").write_bytes(damage(files["flat"]))
    (tmp_path / "good.mcml").write_bytes(files["flat"])
    for command in (["decompress", "-o", "out"], ["identify"]):
        result = run(*command, "bad.mcml", "good.mcml")
        assert result.returncode == 1
        assert result.stderr.startswith("mcml: bad.mcml: ") and result.stderr.count("\n") == 1
        assert sentence in result.stderr
        assert "good.mcml" in result.stdout
        shown = kind in ("bit", "tail") and command == ["identify"]
        assert ("bad.mcml" in result.stdout) == shown and ("unusable" in result.stdout) == shown
    assert files_of(tmp_path / "out") == ["good.png"]


def test_file_of_a_model_that_is_not_here_names_it(run, tmp_path, files):
    header, chunks = bitstream.read(files["flat"])
    (tmp_path / "a.mcml").write_bytes(bitstream.write(replace(header, model=b"\1\2\3\4\5\6\7\x08"), chunks))
    failed(
        run("decompress", "a.mcml"), 1, "a.mcml: the file was written by model 0102030405060708", "--model"
    )
    result = run("identify", "a.mcml")
    assert (result.returncode, result.stderr) == (0, "")
    assert "0102030405060708, which is not here" in result.stdout
    lone = replace(header, model=b"\1\2\3\4\5\6\7\x08", rates=header.rates[:1])
    (tmp_path / "a.mcml").write_bytes(bitstream.write(lone, chunks[:1]))
    (content,) = json.loads(run("identify", "a.mcml", "--json").stdout)
    assert content["rates"] == {"1": header.rates[0]} and content["stream_bytes"] == {"1": len(chunks[0])}


# --------------------------------------------------------------------------------- identify


@pytest.mark.parametrize("kind", ["flat", "adaptive", "layered", "all"])
def test_identify_accounts_for_every_byte(run, tmp_path, files, crop, kind):
    data = files[kind]
    (tmp_path / "a.mcml").write_bytes(data)
    result = run("identify", "a.mcml", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    (found,) = json.loads(result.stdout)
    header, chunks = bitstream.read(data)
    streams = ["Y", "Cb", "Cr"]
    sizes = {"bits": dict.fromkeys(streams, 0), "map": dict.fromkeys(streams, 0) if header.adaptive else {}}
    for (_, _, stream, part), chunk in zip(header.order(), chunks, strict=True):
        sizes[part][streams[stream]] += len(chunk)
    assert found == {
        "file": "a.mcml", "version": 1, "width": 96, "height": 64, "bytes": len(data),
        "bpp": codec.bits_per_pixel(data, crop), "model": "fusion", "model_id": header.model.hex(),
        "maps": "adaptive" if kind in ("adaptive", "all") else "flat",
        "rates": dict(zip(streams, header.rates, strict=True)),
        "layers": {"layered": 3, "all": 2}.get(kind, 1),
        "tiles": 2 if kind == "all" else 1, "tile_px": 64 if kind == "all" else 1024,
        "stream_bytes": sizes["bits"], "map_bytes": sizes["map"],
        "overhead_bytes": len(data) - sum(map(len, chunks)), "unusable_bytes": 0,
        "digest": header.digest.hex(), "chunks": len(chunks),
        "whole_chunks": len(chunks), "checksums": True,
    }  # fmt: skip
    total = sum(found["stream_bytes"].values()) + sum(found["map_bytes"].values()) + found["overhead_bytes"]
    assert total == len(data)

    lines = [line.split() for line in run("identify", "a.mcml").stdout.splitlines()]
    assert lines[0] == ["a.mcml"]
    for words in (
        ["picture", "96", "x", "64", "pixels"], ["model", "fusion"], ["maps", found["maps"]],
        ["layers", str(found["layers"])], ["stream", "Cb", str(sizes["bits"]["Cb"]), "bytes"],
        ["overhead", str(found["overhead_bytes"]), "bytes"], ["checksums", "all", str(len(chunks)), "hold"],
    ):  # fmt: skip
        assert words in lines
    assert (["map", "Cr", f"{sizes['map'].get('Cr')}", "bytes"] in lines) == header.adaptive


def test_identify_tells_how_much_of_a_cut_file_is_there(run, tmp_path, files):
    (tmp_path / "cut.mcml").write_bytes(files["layered"][:-6])
    (tmp_path / "text.mcml").write_text("no such thing")
    result = run("identify", ".")
    assert result.returncode == 1
    assert "8 of 9 hold" in result.stdout
    assert [line.split(": ")[1] for line in result.stderr.splitlines()] == ["cut.mcml", "text.mcml"]
    result = run("identify", ".", "none.mcml", "--json")
    assert result.returncode == 1
    cut, text, none = json.loads(result.stdout)
    assert (cut["checksums"], cut["whole_chunks"], cut["chunks"]) == (False, 8, 9)
    parts = sum(cut["stream_bytes"].values()) + cut["overhead_bytes"] + cut["unusable_bytes"]
    assert cut["overhead_bytes"] < 100 and cut["unusable_bytes"] > 0 and parts == cut["bytes"]
    assert cut["error"].startswith("the file ends within chunk 9")
    assert list(text) == list(none) == ["file", "error"]


def test_header_that_promises_millions_of_chunks_takes_no_room(run, tmp_path, files):
    header, _ = bitstream.read(files["flat"])
    data = replace(header, width=1 << 14, height=1 << 14, tile_px=64, layers=255).pack()
    (tmp_path / "huge.mcml").write_bytes(data)
    tracemalloc.start()
    try:
        result = run("identify", "huge.mcml")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert result.returncode == 1
    assert f"0 of {255 * 3 << 16} hold" in result.stdout
    assert peak < 1 << 26


# --------------------------------------------------------------------------------- evaluate


def test_evaluate_searches_rates_as_the_learned_codec_does(run, folder, tmp_path, fusion):
    result = run("evaluate", "photos", "--codecs", "fusion,jpeg444", "--bpp", "0.15,0.25", "--csv", "t.csv")
    assert result.returncode == 0, result.stderr
    with (tmp_path / "t.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["codec"] == "fusion"]
    for row, (name, target) in zip(rows, [(n, t) for n in ("one", "two") for t in (0.15, 0.25)], strict=True):
        image = read_image(folder / f"{name}.png")
        found = fusion.search(image, target)
        assert (row["image"], float(row["quality"]), float(row["bpp"])) == (name, found.quality, found.bpp)
        assert float(row["psnr"]) == pytest.approx(metrics.compare(image, fusion.decode(found.data)).psnr)


def test_evaluate_runs_a_learned_codecs_own_qualities_from_its_folder(run, folder, tmp_path, fusion):
    (folder / "two.png").unlink()
    shutil.copytree(fusion.folder, tmp_path / "mine")
    result = run("evaluate", "photos", "--codecs", "mine", "--csv", "t.csv", "--workers", 1)
    assert result.returncode == 0, result.stderr
    image = read_image(folder / "one.png")
    with (tmp_path / "t.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["quality"]) for row in rows] == list(fusion.qualities)
    for row in rows:
        data = fusion.encode(image, float(row["quality"]))
        assert float(row["bpp"]) == codec.bits_per_pixel(data, image)


def test_worker_processes_use_one_thread_of_torch(monkeypatch, folder):
    def threads(*_):
        import torch

        return [{"image": str(os.getpid()), "quality": torch.get_num_threads()}]

    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(evaluation, "_worker", threads)
    found = evaluation.evaluate(sorted(folder.glob("*.png")), ["webp"], workers=2)
    assert set(found.quality) == {1}
    assert str(os.getpid()) not in set(found.image)


# --------------------------------------------------------------- help, errors, interruption


@pytest.mark.parametrize("words", [["--help"], ["compress", "--help"], ["identify", "a.mcml"]])
def test_help_and_identify_are_quick_and_do_without_torch(tmp_path, files, words):
    (tmp_path / "a.mcml").write_bytes(files["flat"])
    code = f"""
import atexit, sys, time
sys.argv = {["mcml", *words]!r}
atexit.register(lambda: print(time.process_time(), *sys.modules, file=sys.stderr))
from mcml import __main__
__main__.main()
"""
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 0, result.stderr
    seconds, *loaded = result.stderr.split()
    assert float(seconds) < 1
    assert "mcml.file_cli" in loaded
    assert not {"torch", "scipy", "skimage", "pandas", "matplotlib", "constriction"} & set(loaded)


def test_help_lists_the_commands_and_their_options(run):
    text = run("--help").stdout
    for command in ("compress", "decompress", "identify"):
        assert f" {command} " in text
    for word in ("--bpp", "--rate", "--model", "--output", "-o", "--adaptive", "--layers", "--no-metrics"):
        assert word in run("compress", "--help").stdout
    for word in ("--model", "--luma-only", "--layers", "--partial", "--overwrite"):
        assert word in run("decompress", "--help").stdout


def test_debug_shows_where_each_error_came_from(run, tmp_path):
    (tmp_path / "text.mcml").write_text("no such thing")
    for words in (["--debug", "identify", "text.mcml"], ["decompress", "text.mcml", "--debug"]):
        result = run(*words)
        assert result.returncode == 1
        assert "Traceback (most recent call last)" in result.stderr
        assert result.stderr.splitlines()[-1].startswith("mcml: text.mcml: not an mcml file")


def test_interrupted_run_keeps_and_shows_what_is_finished(run, folder, monkeypatch):
    def read(path):
        if path.name == "two.png":
            os.kill(os.getpid(), signal.SIGINT)
        return read_image(path)

    monkeypatch.setattr(images, "read_image", read)
    result = run("compress", "photos", "--rate", 5, "--no-metrics")
    assert result.returncode == 130
    assert result.stderr.startswith("mcml: interrupted")
    assert [row["image"] for row in table(result)] == ["photos/one.png"]
    assert files_of(folder) == ["notes.txt", "one.mcml", "one.png", "two.png"]


def test_file_is_written_whole_or_not_at_all(run, folder, monkeypatch, tmp_path):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    result = run("compress", "photos", "--rate", 5, "--no-metrics", "-o", "out")
    assert (result.returncode, result.stdout) == (1, "")
    assert [line.split(": ")[1] for line in result.stderr.splitlines()] == [
        "photos/one.png",
        "photos/two.png",
    ]
    assert result.stderr.count("No space left on device") == 2
    assert files_of(tmp_path / "out") == []
