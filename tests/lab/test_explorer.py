"""The explorer's steps are the codec's own files and decodes; its curtain needs nothing from elsewhere."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from mcml.base.errors import UsageError
from mcml.codec.interface import get_codec
from mcml.lab.curtain import lossless, static_curtain
from mcml.lab.explorer import PLACES, Explorer


@pytest.mark.parametrize(
    "name", ["scalar_fusion", "scalar_independent", "fusion", "independent", "jpeg444", "webp"]
)
def test_a_step_is_the_codecs_file_and_its_decode(name, astronaut):
    explorer, codec = Explorer(astronaut, name), get_codec(name)
    for quality in (20.0, 55.0):
        step = explorer.at(quality)
        assert step.data == codec.encode(astronaut, quality)
        assert np.array_equal(step.image, codec.decode(step.data))
        assert sum(step.parts.values()) == len(step.data) and step.bpp == 8 * len(step.data) / (160 * 128)


def test_a_step_is_taken_once_and_the_slider_spans_the_codecs_range(astronaut):
    explorer = Explorer(astronaut, "jpeg2000")
    assert explorer.place(100) is explorer.place(100)
    sizes = [len(explorer.place(position).data) for position in (0, 60, 120, PLACES)]
    assert sizes == sorted(sizes)
    assert explorer.position(0) == 0 and explorer.position(99) == PLACES
    found = explorer.position(1.5)
    assert explorer.place(found - 1).bpp < 1.5 <= explorer.place(found).bpp
    assert explorer.place(0).quality == explorer.codec.quality_range.coarsest


def test_a_quality_beyond_the_range_is_refused(astronaut):
    for name in ("scalar_fusion", "fusion", "jpeg444"):
        with pytest.raises(UsageError, match="quality 120"):
            Explorer(astronaut, name).at(120.0)


def test_the_static_curtain_holds_both_pictures_lossless_and_nothing_from_elsewhere(astronaut):
    html = static_curtain(astronaut, 255 - astronaut, "a <photo>", "b")
    sources = re.findall(r'src="data:image/webp;base64,([^"]+)"', html)
    first, second = (np.asarray(Image.open(io.BytesIO(base64.b64decode(s)))) for s in sources)
    assert np.array_equal(first, astronaut) and np.array_equal(second, 255 - astronaut)
    assert "http" not in html and "a &lt;photo&gt;" in html
    assert html == static_curtain(astronaut, 255 - astronaut, "a <photo>", "b")


def test_pictures_travel_lossless(astronaut):
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(lossless(astronaut)))), astronaut)
