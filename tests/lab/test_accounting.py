"""Bits by part add up to the file, damage is noticed, rows of real files agree with the codec."""

import numpy as np
import pytest
from helpers import tiny_codec

from mcml.codec import interface as codec
from mcml.codec.learned import LearnedCodec
from mcml.lab import accounting
from mcml.metrics import distortion as metrics


@pytest.fixture(scope="module")
def coder(tmp_path_factory) -> LearnedCodec:
    return tiny_codec(tmp_path_factory.mktemp("model") / "fusion")


@pytest.fixture(scope="module")
def picture():
    from mcml.data import sets as data

    return data.image_set("embedded").read("astronaut")[:96, 60:188].copy()


def test_the_parts_of_a_file_sum_to_its_bits(coder, picture):
    rows = accounting.bit_rows(coder, {"a": picture}, (10, 60))
    for kind, adaptive in (("uniform", False), ("adaptive", True)):
        for quality in (10, 60):
            of = [r for r in rows if (r["kind"], r["quality"]) == (kind, quality)]
            parts = {r["part"] for r in of}
            maps = {"Y map", "Cb map", "Cr map"} if adaptive else set()
            assert parts == {"Y", "Cb", "Cr", "framing", "coder"} | maps
            found = coder.pack(coder.analyse(picture), quality, adaptive=adaptive)
            assert {r["file_bits"] for r in of} == {8 * len(found.data)}
            assert sum(r["coded_bits"] for r in of) == pytest.approx(8 * len(found.data))
            raw = {r["part"]: r["raw_bits"] for r in of}
            assert raw.pop("framing") == raw.pop("coder") == 0 and raw == found.raw_bits


def test_framing_is_header_lengths_and_checksums(coder, picture):
    data = coder.encode(picture, 30)
    assert accounting.framing_bytes(data) == 28 + 3 * 4 + sum(
        1 + (len(chunk) > 127) + (len(chunk) > 16383) for chunk in _chunks(data)
    )


def _chunks(data):
    from mcml.codec import container as bitstream

    return bitstream.read(data)[1]


def test_an_estimate_holds_until_the_coder_wastes_more_than_it_may(coder, picture):
    rows = accounting.bit_rows(coder, {"a": picture}, (40, 80), kinds=("uniform",))
    totals = accounting.file_totals(rows)
    assert [t["quality"] for t in totals] == [40, 80] and all(t["holds"] for t in totals)
    for total in totals:
        assert total["ideal_bytes"] + total["framing_bytes"] < total["file_bytes"]
    wasteful = [r | {"coded_bits": 1000.0 + r["coded_bits"]} if r["part"] == "coder" else r for r in rows]
    ideal = sum(r["coded_bits"] for r in rows if r["part"] in ("Y", "Cb", "Cr") and r["quality"] == 40)
    assert ideal < 80_000  # so that 1000 bits are more than 1 % and three words
    assert not accounting.file_totals(wasteful)[0]["holds"]


@pytest.mark.parametrize("adaptive", [False, True])
def test_integers_survive_and_a_changed_one_is_noticed(coder, picture, monkeypatch, adaptive):
    assert accounting.integers_survive(coder, picture, 35, adaptive=adaptive)
    read = coder.coder.read

    def other(*arguments):
        codes, layers = read(*arguments)
        bits, opened = codes["Cr"]
        bits[np.unravel_index(opened.argmax(), opened.shape)][0] ^= 0x80
        return codes, layers

    monkeypatch.setattr(coder.coder, "read", other)
    assert not accounting.integers_survive(coder, picture, 35, adaptive=adaptive)


def test_same_chunks_overlook_the_models_name_alone(coder, picture):
    data = coder.encode(picture, 20)
    renamed = bytearray(data)
    renamed[10] ^= 1
    assert accounting.same_chunks(data, data)
    assert not accounting.same_chunks(data, coder.encode(picture, 21))
    assert not accounting.same_chunks(data, coder.encode(picture[::-1].copy(), 20))


def test_rows_of_files_are_what_codec_and_metrics_give(coder, picture):
    rows = accounting.file_rows({"mine": coder.folder}, {"a": picture}, (15, 70), workers=1)
    assert [(r["codec"], r["image"], r["quality"]) for r in rows] == [("mine", "a", 15), ("mine", "a", 70)]
    for row in rows:
        data = coder.encode(picture, row["quality"])
        decoded = coder.decode(data)
        assert row["file_bytes"] == len(data) and row["bpp"] == codec.bits_per_pixel(data, picture)
        assert row["ideal_bpp"] < row["bpp"] and row["ideal_bpp"] < row["raw_bpp"]
        assert row["psnr"] == metrics.compare(picture, decoded).psnr
        assert row["psnr_Y"] == pytest.approx(metrics.compare(picture, decoded).y_psnr, abs=0.01)
    maps = accounting.file_rows({"mine": coder.folder}, {"a": picture}, (15,), kinds=("adaptive",), workers=1)
    assert maps[0]["kind"] == "adaptive"
    assert maps[0]["file_bytes"] == len(coder.encode(picture, 15, adaptive=True))
    few = accounting.file_rows({"mine": coder.folder}, {"a": picture}, (15, 70), workers=1, colors_only=True)
    for row, short in zip(rows, few, strict=True):
        assert "ssim" not in short
        for column in ("psnr", "ciede2000", "psnr_Cb", "psnr_Cr", "file_bytes"):
            assert short[column] == pytest.approx(row[column], rel=1e-9), column


def test_seconds_are_by_phase_and_positive(coder, picture):
    rows = accounting.time_codecs([str(coder.folder), "jpeg420"], picture, 0.9, repeats=2)
    found = {(r["codec"], r["direction"], r["phase"]) for r in rows}
    mine, ways = str(coder.folder), ("encode", "decode")
    assert found == {(mine, w, p) for w in ways for p in ("networks", "entropy")} | {
        ("jpeg420", w, "all") for w in ways
    }
    assert all(0 < r["seconds"] < 60 for r in rows)
    assert {round(r["bpp"], 1) for r in rows if r["codec"] == "jpeg420"} == {0.9}
