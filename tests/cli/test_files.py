"""Files from the command line: compress, decompress and identify as a user meets them."""

import json
import os
import re
import shlex
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import failed, files_of
from PIL import Image

from mcml.codec import container as bitstream
from mcml.codec import interface as codec
from mcml.codec.learned import LearnedCodec
from mcml.data.images import read_image
from mcml.lab.output import format_value
from mcml.metrics import distortion as metrics

MEASURES = ["psnr", "ciede2000"]
BRIEFLY = ["--quality", 5, "--no-metrics"]


@pytest.fixture(scope="module")
def fusion():
    return LearnedCodec("fusion")


@pytest.fixture(scope="module")
def scalar():
    """What compresses unless told otherwise."""
    return LearnedCodec("scalar_fusion")


@pytest.fixture(scope="module")
def crop(astronaut):
    """Lines 16 to 80 of a face: 96 x 64 pixels."""
    return np.ascontiguousarray(astronaut[16:80, 40:136])


@pytest.fixture(scope="module")
def files(fusion, scalar, crop):
    """One picture's files of each kind."""
    return {
        "default": codec.encode_at_bpp(scalar, crop, 0.3).data,
        "shared": scalar.encode(crop, 40, color_share=-10),
        "uniform": fusion.encode(crop, 60),
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


def table(result, code=0):
    """Return the rows that a command printed; where it succeeded it said nothing else."""
    assert result.returncode == code and (code or result.stderr == ""), result.stderr
    header, *lines = (line.split() for line in result.stdout.splitlines())
    if len(header) == 2:  # one row alone is a list
        return [dict([header, *lines])]
    return [dict(zip(header, line, strict=True)) for line in lines]


# --------------------------------------------------------------------------------- compress


def test_compress_and_decompress_are_the_codec_and_the_table_its_measures(mcml, folder, tmp_path, scalar):
    (row,) = table(mcml("compress", "photos/one.png", "--bpp", "0.25"))
    image, data = read_image(folder / "one.png"), (folder / "one.mcml").read_bytes()
    nearest, decoded = codec.encode_at_bpp(scalar, image, 0.25), scalar.decode(data)
    assert nearest.reached and data == nearest.data
    assert list(row) == ["file", "bytes", "bpp", "quality", *MEASURES, "seconds"]
    assert float(row.pop("seconds")) > 0
    expected = {"file": "photos/one.mcml", "image": "photos/one.png", "width": 96, "height": 64,
                "model": "scalar_fusion", "bytes": len(data), "bpp": nearest.bpp,
                "quality": nearest.quality, **vars(metrics.compare(image, decoded))}  # fmt: skip
    assert row == {name: format_value(name, expected[name]) for name in row}
    (row,) = json.loads(mcml("compress", "photos/one.png", "--bpp", "0.25", "--overwrite", "--json").stdout)[
        "rows"
    ]
    assert row.pop("seconds") > 0 and row == expected
    (row,) = table(mcml("compress", "photos/one.png", "--bpp", "0.25", "--overwrite", "--all"))
    assert list(row) == [*expected, "seconds"]

    (row,) = table(mcml("decompress", "photos/one.mcml", "-o", "back.png"))
    with Image.open(tmp_path / "back.png") as back:
        assert (back.format, back.mode) == ("PNG", "RGB")
        np.testing.assert_array_equal(np.asarray(back), decoded)
    assert [row[name] for name in ("output", "width", "height", "layers")] == ["back.png", "96", "64", "1"]
    (row,) = json.loads(
        mcml("decompress", "photos/one.mcml", "-o", "back.png", "--overwrite", "--json").stdout
    )["rows"]
    assert row.pop("seconds") > 0
    assert row == {
        "output": "back.png", "file": "photos/one.mcml", "width": 96, "height": 64, "model": "scalar_fusion",
        "layers": 1, "layers_in_file": 1,
    }  # fmt: skip
    photos = ["notes.txt", "one.mcml", "one.png", "two.png"]
    assert files_of(tmp_path) == ["back.png", *(f"photos/{name}" for name in photos)]


@pytest.mark.parametrize(
    "options, kind",
    [
        ([], "default"),
        (["--quality", 40, "--color-share", -10], "shared"),
        (["--model", "fusion", "--quality", 60], "uniform"),
        (["--model", "fusion", "--quality", 60, "--adaptive"], "adaptive"),
        (["--model", "fusion", "--quality", 60, "--layers", 3], "layered"),
    ],
)
def test_rate_and_options_reach_the_encoder(mcml, folder, files, tmp_path, options, kind):
    (row,) = table(mcml("compress", "photos/one.png", "--no-metrics", "-o", "x.mcml", *options))
    assert (tmp_path / "x.mcml").read_bytes() == files[kind]
    assert list(row) == ["file", "bytes", "bpp", "quality", "seconds"]


def test_another_model_is_taken_by_name_or_folder(mcml, folder, tmp_path):
    (tmp_path / "fusion").mkdir()  # does not hide the released model of this name
    for number, model in enumerate(("independent", LearnedCodec("independent").folder, "fusion")):
        table(mcml("compress", "photos/one.png", *BRIEFLY, "--model", model, "-o", f"{number}.mcml"))
    made = [(tmp_path / f"{number}.mcml").read_bytes() for number in range(3)]
    assert made[0] == made[1] == LearnedCodec("independent").encode(read_image(folder / "one.png"), 5)
    table(mcml("decompress", *(f"{number}.mcml" for number in range(3))))
    result = mcml("decompress", "0.mcml", "--model", "fusion", "--overwrite")
    failed(result, 1, "0.mcml: the file was written by independent: fusion cannot decode it")


def test_target_out_of_reach_gives_the_nearest_file_and_says_why(mcml, crop, tmp_path, fusion):
    tiny = np.ascontiguousarray(crop[:8, :8])
    Image.fromarray(tiny).save(tmp_path / "tiny.png")
    encode = fusion.encoder(tiny)
    sizes = sorted({len(encode(quality)) for quality in np.linspace(0, 100, 101)})
    options = ["--no-metrics", "--model", "fusion"]
    result = mcml("compress", "tiny.png", "--bpp", 24, *options)
    nearest = codec.encode_at_bpp(fusion, tiny, 24)
    assert result.returncode == 0 and len(nearest.data) == sizes[-1] < 24 * 8
    assert (tmp_path / "tiny.mcml").read_bytes() == nearest.data
    reach = f"on this image it reaches {sizes[0] / 8:.4f} to {sizes[-1] / 8:.4f} bpp"
    assert result.stderr == f"note: tiny.png: {nearest.explain('fusion')}; {reach}\n"

    gap = max(range(len(sizes) - 1), key=lambda i: sizes[i + 1] / sizes[i])
    assert sizes[gap + 1] / sizes[gap] > 1.05
    between = (sizes[gap] + sizes[gap + 1]) / 2 / 8
    result = mcml("compress", "tiny.png", "--bpp", between, *options, "--overwrite")
    assert result.returncode == 0
    assert sizes[gap] <= len((tmp_path / "tiny.mcml").read_bytes()) <= sizes[gap + 1]
    assert result.stderr.startswith("note: tiny.png: fusion: nearest to")
    assert result.stderr.endswith(" bpp, in steps that are coarse on so few pixels\n")


# -------------------------------------------------------------------------- inputs, outputs


@pytest.mark.parametrize(
    "words", ["photos", "photos/*.png", "photos/one.png photos/two.png", "photos/two.png ./photos"]
)
def test_files_folders_and_patterns_name_each_image_once(mcml, folder, tmp_path, words):
    assert len(table(mcml("compress", *words.split(), *BRIEFLY, "-o", "new/deep"))) == 2
    assert files_of(tmp_path / "new") == ["deep/one.mcml", "deep/two.mcml"]
    table(mcml("decompress", "new/deep", "-o", "back"))
    assert files_of(tmp_path / "back") == ["one.png", "two.png"]  # by the names of their originals


def test_output_of_one_image_is_a_file_unless_it_is_or_ends_as_a_folder(mcml, folder, tmp_path):
    (tmp_path / "there").mkdir()
    (folder / "two.png").rename(tmp_path / "br[1].png")  # a file, not a pattern
    for name, output in (
        *(("photos/one.png", output) for output in ("new/", "there", "a/b.mcml")), ("br[1].png", "c.mcml"),
    ):  # fmt: skip
        table(mcml("compress", name, *BRIEFLY, "-o", output))
    assert {"a/b.mcml", "new/one.mcml", "there/one.mcml", "c.mcml"} < set(files_of(tmp_path))


def test_nothing_is_overwritten_unless_told_and_every_output_is_checked_before_work(mcml, folder):
    (folder / "two.mcml").write_text("mine")
    sentence = "photos/two.mcml exists: name another with -o, or --overwrite replaces it"
    failed(mcml("compress", "photos"), 2, sentence)
    assert (folder / "two.mcml").read_text() == "mine" and not (folder / "one.mcml").exists()
    table(mcml("compress", "photos", *BRIEFLY, "--overwrite"))
    assert (folder / "two.mcml").read_bytes().startswith(b"MCML")


def test_decompressing_beside_the_originals_leaves_them_even_with_overwrite(mcml, folder):
    before = {name: (folder / name).read_bytes() for name in ("one.png", "two.png")}
    table(mcml("compress", "photos", *BRIEFLY))
    for more in ([], ["--overwrite"]):
        table(mcml("decompress", "photos", *more))
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert {"one.decoded.png", "two.decoded.png"} < set(files_of(folder))
    failed(mcml("decompress", "photos", "-o", "photos"), 2, "photos/one.png exists: name another with -o")


def test_pictures_and_compressed_files_in_each_other_s_place_are_told_apart(mcml, folder, tmp_path, files):
    (tmp_path / "a.mcml").write_bytes(files["uniform"])
    (folder / "one.decoded.png").touch()  # is not what is wrong
    for command in ("decompress", "identify"):
        failed(mcml(command, "photos/one.png"), 1, "photos/one.png: ", "a PNG picture")
    failed(mcml("compress", "a.mcml", "-o", "b.mcml"), 2, "a.mcml is compressed already", "`mcml decompress`")
    assert not (tmp_path / "b.mcml").exists()


def test_json_is_printed_whatever_failed(mcml, folder):
    result = mcml("compress", "photos/one.png", "photos/notes.txt", *BRIEFLY, "--json")
    assert result.returncode == 1 and "photos/notes.txt: not an image" in result.stderr
    assert [row["bytes"] for row in json.loads(result.stdout)["rows"]] == [
        (folder / "one.mcml").stat().st_size
    ]
    result = mcml("decompress", "photos/one.png", "--json")
    assert result.returncode == 1 and json.loads(result.stdout) == {"rows": []}


def test_transparent_pictures_are_compressed_on_the_background_that_is_named(mcml, folder, crop, scalar):
    photo = Image.fromarray(crop)
    photo.putalpha(Image.linear_gradient("L").resize(photo.size))
    photo.save(folder / "one.png")
    sentence = "has transparent pixels: flatten it, or name what is behind them by --background white"
    failed(mcml("compress", "photos/one.png"), 1, sentence)
    table(mcml("compress", "photos/one.png", *BRIEFLY, "--background", "#fc8"))
    share = np.asarray(photo)[..., 3:] / 255
    mixed = np.rint(share * crop + (1 - share) * [255, 204, 136])  # sRGB values, as browsers do
    image = read_image(folder / "one.png", (255, 204, 136))
    assert np.abs(image - mixed).max() <= 1
    assert (folder / "one.mcml").read_bytes() == scalar.encode(image, 5)
    result = mcml("compare", "photos/one.png", "photos/one.mcml", "--background", "#fc8", "--json")
    (row,) = json.loads(result.stdout)["rows"]
    assert row["psnr"] == metrics.compare(image, scalar.decode(scalar.encode(image, 5))).psnr
    failed(
        mcml("compress", "photos/one.png", "--background", "wite"), 2, "expected a colour, as white", "'wite'"
    )


@pytest.mark.parametrize(
    "words, sentence",
    [
        ("photos/one.png one.jpg -o x/", "one.png and one.jpg would both become x/one.mcml"),
        ("photos/one.png -o photos/one.png --overwrite", "photos/one.png is an input"),
        ("photos/one.png -o new.png", "--output new.png: expected a name in .mcml"),
        ("photos/one.png -o plain", "--output plain: expected a name in .mcml"),
        ("photos -o all.mcml", "all.mcml: several inputs need a folder: end a new one's name with /"),
        ("photos -o one.jpg", "--output one.jpg: several inputs need a folder"),
        ("photos/*.png -o one.jpg", "several inputs need a folder"),
        ("one.??g -o x.mcml", "several inputs need a folder"),
        ("photos/one.png --bpp 0.3 --quality 3", "--bpp and --quality: give one of them"),
        ("photos/one.png --bpp 0", "--bpp: expected a number from 0.0001 to 24, not '0'"),
        ("photos/one.png --bpp nan", "--bpp: expected a number from"),
        ("photos/one.png --quality 100.5", "--quality/--rate: expected a number from 0 to 100, not '100.5'"),
        ("photos/one.png --quality nan", "--quality/--rate: expected a number from"),
        ("photos/one.png --model fusoin", "unknown model 'fusoin': did you mean 'fusion'"),
        ("photos/one.png ''", "an input's name is empty"),
        ("one.jpg", "one.mcml is a folder"),
        ("photos -o photos/notes.txt/x/", "notes.txt/x"),
        *((f"a.mcml -o {name}", f"--output {name}: expected a name in .png") for name in ("x.jpg", "x")),
        ("a.mcml --model fusoin", "unknown model 'fusoin'"),
    ],
)
def test_mistakes_in_usage_stop_before_any_work(mcml, folder, crop, tmp_path, files, words, sentence):
    Image.fromarray(crop).save(tmp_path / "one.jpg")
    (tmp_path / "one.mcml").mkdir()
    (tmp_path / "a.mcml").write_bytes(files["uniform"])
    before = files_of(tmp_path)
    unwritable = "notes.txt" in words
    command = "decompress" if words.startswith("a.mcml") else "compress"
    result = mcml(command, *shlex.split(words))
    failed(result, 1 if unwritable else 2, sentence, "cannot be written" if unwritable else "")
    assert files_of(tmp_path) == before


def test_names_with_bytes_that_are_no_text_are_read_and_shown(mcml, crop, tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    try:
        Image.fromarray(crop).save(tmp_path / name)
    except OSError:
        pytest.skip("this file system takes names of UTF-8 only")
    assert table(mcml("compress", name, *BRIEFLY))[0]["file"] == r"caf\xe9.mcml"
    assert (tmp_path / os.fsdecode(b"caf\xe9.mcml")).exists()


# --------------------------------------------------------------------------------- pictures


def test_pictures_without_one_right_reading_are_refused_and_the_others_compressed(
    mcml, folder, crop, tmp_path
):
    photo = Image.fromarray(crop)
    alpha = photo.copy()
    alpha.putalpha(100)
    alpha.save(folder / "alpha.png")
    photo.convert("CMYK").save(folder / "cmyk.jpg")
    photo.save(folder / "moving.webp", save_all=True, append_images=[photo.rotate(90)])
    photo.convert("F").save(folder / "deep.tif")
    (folder / "cut.png").write_bytes((folder / "one.png").read_bytes()[:900])
    result = mcml("compress", "photos", "none.png", "*.gif", "empty*/", "-o", "out", "--quality", 10)
    assert [row["file"] for row in table(result, 1)] == ["out/one.mcml", "out/two.mcml"]
    assert files_of(tmp_path / "out") == ["one.mcml", "two.mcml"]
    wanted = [
        *("*.gif: no file has a name", "empty*/: no file", "alpha.png: has transparent", "cmyk.jpg: CMYK"),
        *(
            "cut.png: damaged",
            "deep.tif: floating-point",
            "moving.webp: holds 2 frames",
            "none.png: no such file",
        ),
    ]
    for line, words in zip(result.stderr.splitlines(), wanted, strict=True):
        assert line.startswith("mcml: ") and words in line


def test_a_picture_is_compressed_as_a_viewer_shows_it(mcml, crop, tmp_path, scalar):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(crop).save(tmp_path / "turned.png", exif=exif)
    (row,) = table(mcml("compress", "turned.png", *BRIEFLY, "--all"))
    assert (row["width"], row["height"]) == ("64", "96")
    assert (tmp_path / "turned.mcml").read_bytes() == scalar.encode(np.rot90(crop, -1).copy(), 5)


def test_a_cut_file_of_latents_shows_what_is_whole_and_says_so(mcml, crop, tmp_path, scalar, files):
    (tmp_path / "cut.mcml").write_bytes(files["default"][:-9])
    result = mcml("decompress", "cut.mcml")
    failed(result, 1, "cut.mcml: the file ends within chunk 3", "--partial decodes what is whole before it")
    result = mcml("decompress", "cut.mcml", "--partial")
    assert result.returncode == 0 and "grey where the colour of a tile is missing" in result.stderr
    back = read_image(tmp_path / "cut.decoded.png")
    np.testing.assert_array_equal(back, scalar.decode(files["default"], luma_only=True))
    assert back.shape == crop.shape


def test_tiny_pictures_come_back_in_their_size(mcml, crop, tmp_path):
    sizes = [(1, 1), (7, 9), (1, 40)]
    for number, (height, width) in enumerate(sizes):
        Image.fromarray(crop[:height, :width]).save(tmp_path / f"{number}.png")
    table(mcml("compress", ".", "--quality", 50))
    table(mcml("decompress", "."))
    assert [read_image(tmp_path / f"{i}.decoded.png").shape[:2] for i in range(3)] == sizes


# ------------------------------------------------------------------------------- decompress


def test_layers_and_luma_only_reach_the_decoder(mcml, tmp_path, files, fusion):
    (tmp_path / "a.mcml").write_bytes(files["all"])
    for words, options, layers in (
        (["--layers", 1], {"layers": 1}, "1"),
        (["--layers", 9], {}, "2"),
        (["--luma-only"], {"luma_only": True}, "2"),
    ):
        (row,) = table(mcml("decompress", "a.mcml", *words, "--overwrite"))
        assert row["layers"] == layers
        decoded = read_image(tmp_path / "a.decoded.png")
        np.testing.assert_array_equal(decoded, fusion.decode(files["all"], **options))
    assert (decoded[..., 0] == decoded[..., 2]).all()


def test_cut_file_is_refused_or_decoded_as_far_as_it_goes(mcml, tmp_path, files, fusion):
    cut = files["layered"][:-6]
    (tmp_path / "cut.mcml").write_bytes(cut)
    words = ["cut.mcml: the file ends within chunk", "--partial decodes what is whole"]
    failed(mcml("decompress", "cut.mcml"), 1, *words)
    assert files_of(tmp_path) == ["cut.mcml"]
    result = mcml("decompress", "cut.mcml", "--partial")
    assert result.returncode == 0
    assert result.stderr == "note: cut.mcml: cut short or damaged: 2 of 3 layers are whole\n"
    np.testing.assert_array_equal(read_image(tmp_path / "cut.decoded.png"), fusion.decode(cut, partial=True))
    (tmp_path / "cut.mcml").write_bytes(cut[:40])
    failed(mcml("decompress", "cut.mcml", "--partial", "--overwrite"), 1, "before its first stream is whole")
    result = mcml("decompress", "cut.mcml", "--overwrite")
    failed(result, 1, "ends within chunk 1")
    assert "--partial" not in result.stderr


DAMAGES = {
    "empty": (lambda data: b"", "the file is empty"),
    "picture": (
        lambda data: b"\x89PNG\r\n" + data,
        "not an mcml file: it is a PNG picture, which `mcml compress` takes",
    ),
    "short": (lambda data: data[:15], "the file ends within its header, after 15 bytes"),
    "version": (lambda data: data[:4] + b"\x09" + data[5:], "format version 9: this mcml reads versions"),
    "bit": (lambda data: data[:50] + bytes([data[50] ^ 4]) + data[51:], "is damaged: its checksum differs"),
    "tail": (lambda data: data + b"abc", "3 bytes follow the last chunk"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_files_are_refused_with_a_sentence_and_others_go_on(mcml, tmp_path, files, kind):
    damage, sentence = DAMAGES[kind]
    (tmp_path / "bad.mcml").write_bytes(damage(files["uniform"]))
    (tmp_path / "good.mcml").write_bytes(files["uniform"])
    for command in (["decompress", "-o", "out"], ["identify"]):
        result = mcml(*command, "bad.mcml", "good.mcml")
        assert result.returncode == 1
        assert result.stderr.startswith("mcml: bad.mcml: ") and result.stderr.count("\n") == 1
        assert sentence in result.stderr and "good." in result.stdout
        shown = kind in ("bit", "tail") and command == ["identify"]
        assert ("bad.mcml" in result.stdout) == shown and ("unusable" in result.stdout) == shown
    assert files_of(tmp_path / "out") == ["good.png"]


def test_file_of_a_model_that_is_not_here_names_it(mcml, tmp_path, files):
    header, chunks = bitstream.read(files["uniform"])
    header = replace(header, model=b"\1\2\3\4\5\6\7\x08")
    (tmp_path / "a.mcml").write_bytes(bitstream.write(header, chunks))
    written = "a.mcml: the file was written by model 0102030405060708"
    failed(mcml("decompress", "a.mcml"), 1, written, "--model")
    lone = replace(header, rates=header.rates[:1])
    (tmp_path / "b.mcml").write_bytes(bitstream.write(lone, chunks[:1]))
    result = mcml("identify", ".")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("0102030405060708, which is not here") == 2
    assert re.search(rf"rates +1 {lone.rates[0]} ", result.stdout)
    assert re.search(rf"stream 1 +{len(chunks[0])} bytes\n", result.stdout)


# --------------------------------------------------------------------------------- identify


@pytest.mark.parametrize("kind", ["uniform", "adaptive", "layered", "all"])
def test_identify_accounts_for_every_byte(mcml, tmp_path, files, crop, kind):
    data = files[kind]
    (tmp_path / "a.mcml").write_bytes(data)
    result = mcml("identify", "a.mcml")
    assert (result.returncode, result.stderr) == (0, "")
    header, chunks = bitstream.read(data)
    streams = ("Y", "Cb", "Cr")
    names = [f"stream {key}" for key in streams] + [f"map {key}" for key in streams if header.adaptive]
    sizes = dict.fromkeys(names, 0)
    for (_, _, stream, part), chunk in zip(header.order(), chunks, strict=True):
        sizes[f"{'stream' if part == 'bits' else 'map'} {streams[stream]}"] += len(chunk)
    rates = "  ".join(f"{key} {rate}" for key, rate in zip(streams, header.rates, strict=True))
    name, *lines = result.stdout.splitlines()
    assert name == "a.mcml"
    assert {line[2:13].strip(): line[13:] for line in lines} == {
        "format": "version 1", "picture": "96 x 64 pixels", "model": "fusion",
        "file": f"{len(data)} bytes, {codec.bits_per_pixel(data, crop):.4f} bpp",
        "maps": "adaptive" if header.adaptive else "uniform",
        "rates": f"{rates}  ({'level' if header.adaptive else 'level x 256'})",
        "layers": str({"layered": 3, "all": 2}.get(kind, 1)),
        "tiles": "2 of up to 64 pixels" if kind == "all" else "1 of up to 1024 pixels",
        **{name: f"{size} bytes" for name, size in sizes.items()},
        "overhead": f"{len(data) - sum(map(len, chunks))} bytes", "digest": header.digest.hex(),
        "checksums": f"all {len(chunks)} hold",
    }  # fmt: skip


def test_identify_as_json_has_the_same_names_for_every_file_and_skips_what_is_none(mcml, tmp_path, files):
    for name in ("uniform", "adaptive"):
        (tmp_path / f"{name}.mcml").write_bytes(files[name])
    (tmp_path / "text.mcml").write_text("no such thing")
    result = mcml("identify", ".", "--json")
    adaptive, uniform = json.loads(result.stdout)["rows"]
    assert result.returncode == 1 and result.stderr.startswith("mcml: text.mcml: ")
    assert list(adaptive) == list(uniform) == [
        *("file", "version", "width", "height", "bytes", "bpp", "model", "model_id", "maps", "rates"),
        *("layers", "tiles", "tile_px", "stream_bytes", "map_bytes", "overhead_bytes"),
        *("unusable_bytes", "digest", "chunks", "whole_chunks", "checksums"),
    ]  # fmt: skip
    assert (uniform["file"], uniform["bytes"]) == ("uniform.mcml", len(files["uniform"]))
    assert json.loads(mcml("identify", "none.mcml", "--json").stdout) == {"rows": []}


def test_identify_tells_how_much_of_a_cut_file_is_there(mcml, tmp_path, files):
    (tmp_path / "cut.mcml").write_bytes(files["layered"][:-6])
    (tmp_path / "text.mcml").write_text("no such thing")
    result = mcml("identify", ".", "none.mcml")
    assert result.returncode == 1 and "8 of 9 hold" in result.stdout
    told = [line.split(": ")[1] for line in result.stderr.splitlines()]
    assert told == ["cut.mcml", "text.mcml", "none.mcml"] and "ends within chunk 9" in result.stderr
    whole, *parts = map(int, re.findall(r"(\d+) bytes", result.stdout))
    assert whole == len(files["layered"]) - 6 == sum(parts)  # streams, overhead, unusable
    assert parts[-2] < 100 and parts[-1] > 0


def test_header_that_promises_millions_of_chunks_takes_no_room(mcml, tmp_path, files):
    header, _ = bitstream.read(files["uniform"])
    data = replace(header, width=1 << 14, height=1 << 14, tile_px=64, layers=255).pack()
    (tmp_path / "huge.mcml").write_bytes(data)
    tracemalloc.start()
    try:
        result = mcml("identify", "huge.mcml")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert result.returncode == 1 and f"0 of {255 * 3 << 16} hold" in result.stdout
    assert peak < 1 << 26


def test_file_is_written_whole_or_not_at_all(mcml, folder, monkeypatch, tmp_path):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    result = mcml("compress", "photos", *BRIEFLY, "-o", "out")
    assert (result.returncode, result.stdout) == (1, "")
    told = [line.split(": ")[1] for line in result.stderr.splitlines()]
    assert told == ["photos/one.png", "photos/two.png"]
    assert result.stderr.count("No space left on device") == 2 and files_of(tmp_path / "out") == []


def test_outputs_that_are_there_can_be_left_as_they_are(mcml, photo_folder):
    words = ("compress", "photos", "--quality", "5", "--no-metrics")
    assert mcml(*words).returncode == 0
    before = (photo_folder / "one.mcml").stat().st_mtime_ns
    (photo_folder / "two.mcml").unlink()
    result = mcml(*words, "--skip-existing")
    assert result.returncode == 0 and "two.mcml" in result.stdout and "one.mcml" not in result.stdout
    assert (photo_folder / "one.mcml").stat().st_mtime_ns == before


@pytest.mark.parametrize("target", ["nowhere.png", "link.png"])
def test_a_link_that_leads_nowhere_is_named_and_the_others_are_done(mcml, photo_folder, target):
    (photo_folder / "link.png").symlink_to(target)
    result = mcml("compress", "photos", "--quality", "5", "--no-metrics")
    assert result.returncode == 1 and (photo_folder / "one.mcml").exists()
    assert "link.png: " in result.stderr and "fault" not in result.stderr
    assert "--debug" not in result.stderr


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="has no /dev/zero")
@pytest.mark.parametrize("words", [("compress", "/dev/null"), ("compress", "/dev/./zero")])
def test_nothing_is_written_beside_a_device(mcml, words):
    failed(mcml(*words), 2, "name the output with -o")
