"""Bits by part add up to the file; rows of real files agree with the codec and the metrics."""

from types import SimpleNamespace

import numpy as np
import pytest
from helpers import tiny_codec

from mcml.codec import container
from mcml.codec.interface import bits_per_pixel
from mcml.lab import accounting
from mcml.metrics import distortion as metrics


@pytest.fixture(scope="module")
def coder(tmp_path_factory):
    return tiny_codec(tmp_path_factory.mktemp("model") / "fusion")


def test_the_parts_of_a_file_sum_to_its_bits(coder, astronaut):
    rows = accounting.bit_rows(coder, {"a": astronaut}, (10, 60))
    files = {(row["kind"], row["quality"]) for row in rows}
    assert files == {("uniform", 10), ("uniform", 60), ("adaptive", 10), ("adaptive", 60)}
    for kind, quality in files:
        own = {row["part"]: row for row in rows if (row["kind"], row["quality"]) == (kind, quality)}
        encoded = coder.pack(coder.analyse(astronaut), quality, adaptive=kind == "adaptive")
        size, (_, chunks) = len(encoded.data), container.read(encoded.data)
        maps = {"Y map", "Cb map", "Cr map"} if kind == "adaptive" else set()
        assert own.keys() == {"Y", "Cb", "Cr", "framing", "coder"} | maps
        assert {(row["file_bits"], row["pixels"]) for row in own.values()} == {(8 * size, 128 * 160)}
        assert sum(row["coded_bits"] for row in own.values()) == pytest.approx(8 * size)
        # the header, in which an adaptive file's rates take a byte less each; by chunk, checksum and length
        header = 25 if kind == "adaptive" else 28
        lengths = sum(1 + (len(chunk) > 127) + (len(chunk) > 16383) for chunk in chunks)
        assert own["framing"]["coded_bits"] == 8 * (header + 4 * len(chunks) + lengths)
        raw = {part: row["raw_bits"] for part, row in own.items()}
        assert raw.pop("framing") == raw.pop("coder") == 0 and raw == encoded.raw_bits
        ideal = sum(encoded.ideal_bits.values())  # a coder's loss: a hundredth, and a word of 32 bits a chunk
        assert 0 < own["coder"]["coded_bits"] <= 0.01 * ideal + 32 * len(chunks)


def test_rows_of_files_are_what_codec_and_metrics_give(coder, astronaut):
    images, systems = {"a": astronaut}, {"mine": coder.folder}
    rows = accounting.file_rows(systems, images, (15, 70), kinds=accounting.KINDS, workers=1)
    keys = [(row["codec"], row["kind"], row["image"], row["quality"]) for row in rows]
    assert keys == [("mine", kind, "a", quality) for kind in accounting.KINDS for quality in (15, 70)]
    for row in (SimpleNamespace(**row) for row in rows):
        data = coder.encode(astronaut, row.quality, adaptive=row.kind == "adaptive")
        expected = metrics.compare(astronaut, coder.decode(data))
        assert (row.file_bytes, row.bpp) == (len(data), bits_per_pixel(data, astronaut))
        assert row.ideal_bpp < row.bpp and row.ideal_bpp < row.raw_bpp
        assert row.psnr == pytest.approx(expected.psnr, rel=1e-9)
        assert row.ciede2000 == pytest.approx(expected.ciede2000, rel=1e-9)
        assert row.psnr_Y == pytest.approx(expected.y_psnr, abs=0.01)  # of luma rounded to 8 bits there
    default = accounting.file_rows(systems, images, (15, 70), workers=1)
    np.testing.assert_equal(default, rows[:2])
