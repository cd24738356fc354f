"""The integer prior: what the float one says, alike on every machine, and symbols that come back."""

import pytest
import torch

from mcml.codec.interface import get_codec
from mcml.codec.prior import dial_of
from mcml.data.sets import image_set
from mcml.model.validate import to_tensor


@torch.no_grad()
def float_bits(codec, image, dials):
    """Return what a model's own prior estimates for an image, by stream."""
    before, bits = {}, {}
    for (key, plane), dial in zip(codec.model.planes(to_tensor(image)).items(), dials, strict=True):
        output = codec.model.streams[key](plane, torch.tensor([dial_of(dial)]), before, decode=False)
        before[key], bits[key] = output.code, float(output.estimated_bits)
    return bits


@pytest.mark.parametrize("quality", [20, 40])
def test_a_photograph_takes_at_most_half_a_percent_more_bits_than_the_float_prior_says(quality):
    """Fewer where a symbol is a surprise, which the tables bound and the logistic does not."""
    codec, image = get_codec("scalar_fusion"), image_set("embedded").read("coffee")[:256, :256]
    encoded = codec.pack(codec.analyse(image), quality, rounding=0, color_share=0).ideal_bits
    estimated = float_bits(codec, image, codec.coder.dials(quality, 0))
    assert encoded["Y"] + encoded["Y hyper"] == pytest.approx(estimated["Y"], rel=0.005)
    assert 0.8 < encoded.total() / sum(estimated.values()) < 1.005
