"""Files from the command line: compress, decompress and identify as a user meets them."""

import json
import os
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from helpers import failed, files_of, icc
from PIL import Image

from mcml.codec import container as bitstream
from mcml.codec import interface as codec
from mcml.codec.learned import LearnedCodec
from mcml.data.images import read_image
from mcml.lab.output import format_value
from mcml.metrics import distortion as metrics

COLUMNS = ["image", "size", "bytes", "bpp", "quality", "psnr", "ms_ssim", "ciede2000", "seconds"]


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


def table(result):
    header, *lines = (line.split() for line in result.stdout.splitlines())
    return [dict(zip(header, line, strict=True)) for line in lines]


# --------------------------------------------------------------------------------- compress


def test_compress_and_decompress_are_the_codec_and_the_table_its_measures(mcml, folder, tmp_path, fusion):
    result = mcml("compress", "photos/one.png", "--bpp", "0.25")
    assert (result.returncode, result.stderr) == (0, "")
    image, data = read_image(folder / "one.png"), (folder / "one.mcml").read_bytes()
    found = codec.encode_at_bpp(fusion, image, 0.25)
    assert found.reached and data == found.data
    decoded = fusion.decode(data)
    (row,) = table(result)
    assert list(row) == COLUMNS
    assert float(row.pop("seconds")) > 0
    expected = {"image": "photos/one.png", "size": "96x64", "bytes": len(data), "bpp": found.bpp,
                "quality": found.quality, **vars(metrics.compare(image, decoded))}  # fmt: skip
    assert row == {name: format_value(name, expected[name]) for name in row}

    result = mcml("decompress", "photos/one.mcml", "-o", "back.png")
    assert (result.returncode, result.stderr) == (0, "")
    with Image.open(tmp_path / "back.png") as back:
        assert (back.format, back.mode) == ("PNG", "RGB")
        np.testing.assert_array_equal(np.asarray(back), decoded)
    (row,) = table(result)
    assert (row["file"], row["output"], row["size"]) == ("photos/one.mcml", "back.png", "96x64")
    photos = ["notes.txt", "one.mcml", "one.png", "two.png"]
    assert files_of(tmp_path) == ["back.png", *(f"photos/{name}" for name in photos)]


def test_without_rate_or_bpp_files_have_0_3_bpp(mcml, folder, fusion):
    assert mcml("compress", "photos/one.png", "--no-metrics").returncode == 0
    image = read_image(folder / "one.png")
    assert (folder / "one.mcml").read_bytes() == codec.encode_at_bpp(fusion, image, 0.3).data


@pytest.mark.parametrize(
    "options, kind", [([], "uniform"), (["--adaptive"], "adaptive"), (["--layers", 3], "layered")]
)
def test_rate_and_options_reach_the_encoder(mcml, folder, files, tmp_path, options, kind):
    result = mcml("compress", "photos/one.png", "--rate", 60, "--no-metrics", "-o", "x.mcml", *options)
    assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "x.mcml").read_bytes() == files[kind]
    (row,) = table(result)
    assert list(row) == [name for name in COLUMNS if name not in ("psnr", "ms_ssim", "ciede2000")]


def test_another_model_is_taken_by_name_or_folder(mcml, folder, tmp_path):
    (tmp_path / "fusion").mkdir()  # does not hide the released model of this name
    for number, model in enumerate(("independent", LearnedCodec("independent").folder, "fusion")):
        result = mcml("compress", "photos/one.png", "--rate", 30, "--model", model, "-o", f"{number}.mcml")
        assert result.returncode == 0, result.stderr
    made = [(tmp_path / f"{number}.mcml").read_bytes() for number in range(3)]
    assert made[0] == made[1] == LearnedCodec("independent").encode(read_image(folder / "one.png"), 30)
    assert mcml("decompress", *(f"{number}.mcml" for number in range(3))).returncode == 0
    result = mcml("decompress", "0.mcml", "--model", "fusion", "--overwrite")
    failed(result, 1, "0.mcml: the file was written by independent: fusion cannot decode it")


def test_target_out_of_reach_gives_the_nearest_file_and_says_why(mcml, folder, fusion):
    result = mcml("compress", "photos/one.png", "--bpp", 9, "--no-metrics")
    assert result.returncode == 0
    image, data = read_image(folder / "one.png"), (folder / "one.mcml").read_bytes()
    low, high = (codec.bits_per_pixel(fusion.encode(image, end), image) for end in (0, 100))
    assert data == fusion.encode(image, 100)
    assert result.stderr == (
        f"note: photos/one.png: {codec.encode_at_bpp(fusion, image, 9).explain('fusion')}; "
        f"on this image it reaches {low:.4f} to {high:.4f} bpp\n"
    )


def test_target_between_two_sizes_of_a_tiny_picture_says_that_steps_are_coarse(mcml, crop, tmp_path, fusion):
    tiny = np.ascontiguousarray(crop[:8, :8])
    Image.fromarray(tiny).save(tmp_path / "tiny.png")
    encode = fusion.encoder(tiny)
    sizes = sorted({len(encode(quality)) for quality in np.linspace(0, 100, 101)})
    gap = max(range(len(sizes) - 1), key=lambda i: sizes[i + 1] / sizes[i])
    assert sizes[gap + 1] / sizes[gap] > 1.05
    result = mcml("compress", "tiny.png", "--bpp", (sizes[gap] + sizes[gap + 1]) / 2 / 8, "--no-metrics")
    assert result.returncode == 0
    assert sizes[gap] <= len((tmp_path / "tiny.mcml").read_bytes()) <= sizes[gap + 1]
    assert result.stderr.startswith("note: tiny.png: fusion: nearest to")
    assert result.stderr.endswith(" bpp, in steps that are coarse on so few pixels\n")


# -------------------------------------------------------------------------- inputs, outputs


@pytest.mark.parametrize(
    "words",
    [["photos"], ["photos/*.png"], ["photos/one.png", "photos/two.png"], ["photos/two.png", "./photos"]],
)
def test_files_folders_and_patterns_name_each_image_once(mcml, folder, tmp_path, words):
    result = mcml("compress", *words, "--rate", 20, "--no-metrics", "-o", "new/deep")
    assert (result.returncode, result.stderr) == (0, "")
    assert files_of(tmp_path / "new") == ["deep/one.mcml", "deep/two.mcml"]
    assert len(table(result)) == 2
    result = mcml("decompress", "new/deep", "-o", "back")
    assert (result.returncode, result.stderr) == (0, "")
    assert files_of(tmp_path / "back") == ["one.png", "two.png"]  # by the names of their originals


def test_output_of_one_image_is_a_file_unless_it_is_or_ends_as_a_folder(mcml, folder, tmp_path):
    (tmp_path / "there").mkdir()
    for output in ("new/", "there", "a/b.mcml"):
        assert mcml("compress", "photos/one.png", "--rate", 5, "--no-metrics", "-o", output).returncode == 0
    assert files_of(tmp_path)[:2] == ["a/b.mcml", "new/one.mcml"]
    assert "there/one.mcml" in files_of(tmp_path)
    (tmp_path / "photos" / "one.png").rename(tmp_path / "br[1].png")  # a file, not a pattern
    assert mcml("compress", "br[1].png", "--rate", 5, "--no-metrics", "-o", "c.mcml").returncode == 0
    assert (tmp_path / "c.mcml").is_file()


def test_nothing_is_overwritten_unless_told_and_every_output_is_checked_before_work(mcml, folder):
    (folder / "two.mcml").write_text("mine")
    sentence = "photos/two.mcml exists: name another with -o, or --overwrite replaces it"
    failed(mcml("compress", "photos"), 2, sentence)
    assert (folder / "two.mcml").read_text() == "mine" and not (folder / "one.mcml").exists()
    assert mcml("compress", "photos", "--rate", 5, "--no-metrics", "--overwrite").returncode == 0
    assert (folder / "two.mcml").read_bytes().startswith(b"MCML")


def test_decompressing_beside_the_originals_leaves_them_even_with_overwrite(mcml, folder):
    before = {name: (folder / name).read_bytes() for name in ("one.png", "two.png")}
    assert mcml("compress", "photos", "--rate", 5, "--no-metrics").returncode == 0
    for more in ([], ["--overwrite"]):
        assert mcml("decompress", "photos", *more).returncode == 0
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert {"one.decoded.png", "two.decoded.png"} < set(files_of(folder))
    failed(mcml("decompress", "photos", "-o", "photos"), 2, "photos/one.png exists: name another with -o")


def test_pictures_and_compressed_files_in_each_other_s_place_are_told_apart(mcml, folder, tmp_path, files):
    (tmp_path / "a.mcml").write_bytes(files["uniform"])
    for command in ("decompress", "identify"):
        failed(mcml(command, "photos/one.png"), 1, "photos/one.png: ", "a PNG picture")
    failed(mcml("compress", "a.mcml", "-o", "b.mcml"), 2, "a.mcml is compressed already", "`mcml decompress`")
    assert not (tmp_path / "b.mcml").exists()


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["photos/one.png", "one.jpg", "-o", "x/"], "one.png and one.jpg would both become x/one.mcml"),
        (["photos/one.png", "-o", "photos/one.png", "--overwrite"], "photos/one.png is an input"),
        (["photos/one.png", "-o", "new.png"], "--output new.png: expected a name in .mcml"),
        (["photos/one.png", "-o", "plain"], "--output plain: expected a name in .mcml"),
        (
            ["photos", "-o", "all.mcml"],
            "--output all.mcml: several inputs need a folder: end a new one's name with /",
        ),
        (["photos", "-o", "one.jpg"], "--output one.jpg: several inputs need a folder"),
        (["photos/*.png", "-o", "one.jpg"], "several inputs need a folder"),
        (["photos/one.png", "--bpp", "0.3", "--rate", "3"], "--bpp and --rate: give one of them"),
        (["photos/one.png", "--bpp", "0"], "--bpp: expected a number from 0.0001 to 24, not '0'"),
        (["photos/one.png", "--bpp", "nan"], "--bpp: expected a number from"),
        (["photos/one.png", "--rate", "100.5"], "--rate: expected a number from 0 to 100, not '100.5'"),
        (["photos/one.png", "--rate", "nan"], "--rate: expected a number from"),
        (["photos/one.png", "--model", "fusoin"], "unknown model 'fusoin': did you mean 'fusion'"),
        (["photos/one.png", ""], "an input's name is empty"),
        (["one.jpg"], "one.mcml is a folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_in_usage_stop_before_any_work(mcml, folder, crop, tmp_path, words, sentence):
    Image.fromarray(crop).save(tmp_path / "one.jpg")
    (tmp_path / "one.mcml").mkdir()
    before = files_of(tmp_path)
    failed(mcml("compress", *words), 2, sentence)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("output", ["x.jpg", "x.mcml", "x"])
def test_only_png_is_written(mcml, tmp_path, files, output):
    (tmp_path / "a.mcml").write_bytes(files["uniform"])
    failed(mcml("decompress", "a.mcml", "-o", output), 2, f"--output {output}: expected a name in .png")
    assert files_of(tmp_path) == ["a.mcml"]


def test_place_that_cannot_be_written_is_named_before_work(mcml, folder, tmp_path):
    before = files_of(tmp_path)
    failed(mcml("compress", "photos", "-o", "photos/notes.txt/x/"), 1, "notes.txt/x", "cannot be written")
    assert files_of(tmp_path) == before


def test_names_with_bytes_that_are_no_text_are_read_and_shown(mcml, crop, tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    try:
        Image.fromarray(crop).save(tmp_path / name)
    except OSError:
        pytest.skip("this file system takes names of UTF-8 only")
    result = mcml("compress", name, "--rate", 5, "--no-metrics")
    assert result.returncode == 0
    assert table(result)[0]["image"] == "caf\ufffd.png"
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
    header = f"P6 {crop.shape[1]} {crop.shape[0]} 65535\n".encode()
    (folder / "deep.ppm").write_bytes(header + (crop.astype(">u2") * 257).tobytes())
    (folder / "cut.png").write_bytes((folder / "one.png").read_bytes()[:900])
    result = mcml("compress", "photos", "none.png", "*.gif", "empty*/", "-o", "out", "--rate", 10)
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


def test_orientation_and_profile_are_followed(mcml, crop, tmp_path, fusion):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    photo = Image.fromarray(crop)
    photo.save(tmp_path / "turned.png", exif=exif)
    photo.save(tmp_path / "wide.png", icc_profile=icc("linear"))
    Image.fromarray(crop[..., 0].astype(np.uint16) * 257).save(tmp_path / "grey16.png")
    result = mcml("compress", "turned.png", "wide.png", "grey16.png", "--rate", 30, "--no-metrics")
    assert (result.returncode, result.stderr) == (0, "")
    assert [row["size"] for row in table(result)] == ["64x96", "96x64", "96x64"]
    assert (tmp_path / "turned.mcml").read_bytes() == fusion.encode(np.rot90(crop, -1).copy(), 30)
    moved = read_image(tmp_path / "wide.png")
    assert np.abs(moved.astype(int) - crop).max() > 5
    assert (tmp_path / "wide.mcml").read_bytes() == fusion.encode(moved, 30)
    grey = np.repeat(crop[..., :1], 3, axis=2)
    assert (tmp_path / "grey16.mcml").read_bytes() == fusion.encode(grey, 30)


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (1, 40)])
def test_tiny_pictures_come_back_in_their_size(mcml, crop, tmp_path, size):
    Image.fromarray(crop[: size[0], : size[1]]).save(tmp_path / "tiny.png")
    result = mcml("compress", "tiny.png", "--rate", 50)
    assert (result.returncode, result.stderr) == (0, "")
    assert mcml("decompress", "tiny.mcml").returncode == 0
    assert read_image(tmp_path / "tiny.decoded.png").shape == (*size, 3)


# ------------------------------------------------------------------------------- decompress


def test_layers_and_luma_only_reach_the_decoder(mcml, tmp_path, files, fusion):
    (tmp_path / "a.mcml").write_bytes(files["all"])
    for words, options, layers in (
        (["--layers", 1], {"layers": 1}, "1/2"),
        (["--layers", 9], {}, "2/2"),
        (["--luma-only"], {"luma_only": True}, "2/2"),
    ):
        result = mcml("decompress", "a.mcml", *words, "--overwrite")
        assert (result.returncode, result.stderr) == (0, "")
        assert table(result)[0]["layers"] == layers
        np.testing.assert_array_equal(
            read_image(tmp_path / "a.decoded.png"), fusion.decode(files["all"], **options)
        )
    grey = read_image(tmp_path / "a.decoded.png")
    assert (grey[..., 0] == grey[..., 2]).all()


def test_cut_file_is_refused_or_decoded_as_far_as_it_goes(mcml, tmp_path, files, fusion):
    cut = files["layered"][:-6]
    (tmp_path / "cut.mcml").write_bytes(cut)
    failed(
        mcml("decompress", "cut.mcml"),
        1,
        "cut.mcml: the file ends within chunk",
        "--partial decodes what is whole",
    )
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
    "picture": (lambda data: b"\x89PNG\r\n" + data, "not an mcml file: it is a PNG picture already"),
    "short": (lambda data: data[:15], "the file ends within its header, after 15 bytes"),
    "version": (lambda data: data[:4] + b"\x09" + data[5:], "format version 9: this mcml reads version 1"),
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
        assert sentence in result.stderr
        assert "good.mcml" in result.stdout
        shown = kind in ("bit", "tail") and command == ["identify"]
        assert ("bad.mcml" in result.stdout) == shown and ("unusable" in result.stdout) == shown
    assert files_of(tmp_path / "out") == ["good.png"]


def test_file_of_a_model_that_is_not_here_names_it(mcml, tmp_path, files):
    header, chunks = bitstream.read(files["uniform"])
    (tmp_path / "a.mcml").write_bytes(bitstream.write(replace(header, model=b"\1\2\3\4\5\6\7\x08"), chunks))
    failed(
        mcml("decompress", "a.mcml"), 1, "a.mcml: the file was written by model 0102030405060708", "--model"
    )
    result = mcml("identify", "a.mcml")
    assert (result.returncode, result.stderr) == (0, "")
    assert "0102030405060708, which is not here" in result.stdout
    lone = replace(header, model=b"\1\2\3\4\5\6\7\x08", rates=header.rates[:1])
    (tmp_path / "a.mcml").write_bytes(bitstream.write(lone, chunks[:1]))
    (content,) = json.loads(mcml("identify", "a.mcml", "--json").stdout)
    assert content["rates"] == {"1": header.rates[0]} and content["stream_bytes"] == {"1": len(chunks[0])}


# --------------------------------------------------------------------------------- identify


@pytest.mark.parametrize("kind", ["uniform", "adaptive", "layered", "all"])
def test_identify_accounts_for_every_byte(mcml, tmp_path, files, crop, kind):
    data = files[kind]
    (tmp_path / "a.mcml").write_bytes(data)
    result = mcml("identify", "a.mcml", "--json")
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
        "maps": "adaptive" if kind in ("adaptive", "all") else "uniform",
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

    lines = [line.split() for line in mcml("identify", "a.mcml").stdout.splitlines()]
    assert lines[0] == ["a.mcml"]
    for words in (
        ["picture", "96", "x", "64", "pixels"], ["model", "fusion"], ["maps", found["maps"]],
        ["layers", str(found["layers"])], ["stream", "Cb", str(sizes["bits"]["Cb"]), "bytes"],
        ["overhead", str(found["overhead_bytes"]), "bytes"], ["checksums", "all", str(len(chunks)), "hold"],
    ):  # fmt: skip
        assert words in lines
    assert (["map", "Cr", f"{sizes['map'].get('Cr')}", "bytes"] in lines) == header.adaptive


def test_identify_tells_how_much_of_a_cut_file_is_there(mcml, tmp_path, files):
    (tmp_path / "cut.mcml").write_bytes(files["layered"][:-6])
    (tmp_path / "text.mcml").write_text("no such thing")
    result = mcml("identify", ".")
    assert result.returncode == 1
    assert "8 of 9 hold" in result.stdout
    assert [line.split(": ")[1] for line in result.stderr.splitlines()] == ["cut.mcml", "text.mcml"]
    result = mcml("identify", ".", "none.mcml", "--json")
    assert result.returncode == 1
    cut, text, none = json.loads(result.stdout)
    assert (cut["checksums"], cut["whole_chunks"], cut["chunks"]) == (False, 8, 9)
    parts = sum(cut["stream_bytes"].values()) + cut["overhead_bytes"] + cut["unusable_bytes"]
    assert cut["overhead_bytes"] < 100 and cut["unusable_bytes"] > 0 and parts == cut["bytes"]
    assert cut["error"].startswith("the file ends within chunk 9")
    assert list(text) == list(none) == ["file", "error"]


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
    assert result.returncode == 1
    assert f"0 of {255 * 3 << 16} hold" in result.stdout
    assert peak < 1 << 26


def test_file_is_written_whole_or_not_at_all(mcml, folder, monkeypatch, tmp_path):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    result = mcml("compress", "photos", "--rate", 5, "--no-metrics", "-o", "out")
    assert (result.returncode, result.stdout) == (1, "")
    assert [line.split(": ")[1] for line in result.stderr.splitlines()] == [
        "photos/one.png",
        "photos/two.png",
    ]
    assert result.stderr.count("No space left on device") == 2
    assert files_of(tmp_path / "out") == []
