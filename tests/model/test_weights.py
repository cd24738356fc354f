"""Model folders: what is stored comes back, what does not fit is refused in a sentence."""

import resource
import shutil

import numpy as np
import pytest
import torch
from helpers import SCALAR, equal_tensors, tiny_recipe

from mcml.base.errors import DataError, UsageError
from mcml.model import model_files, weights
from mcml.model.model import build
from mcml.model.settings import VARIANTS


def tiny_model(variant="luma", seed=0, **settings):
    return build(tiny_recipe(variant, **settings).model, seed).eval()


def change_tensors(folder, change):
    tensors = weights.load_tensors(folder, "weights")
    change(tensors)
    weights.save_tensors(folder, "weights", tensors)


@pytest.fixture
def folder(tmp_path):
    weights.save_model(tiny_model(), tmp_path / "model", {"steps": 3})
    return tmp_path / "model"


@pytest.mark.parametrize("quantizer", [{}, SCALAR], ids=["binary", "scalar"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_model_comes_back_as_its_compact_weights(tmp_path, variant, quantizer):
    model = tiny_model(variant, seed=4, **quantizer)
    weights.save_model(model, tmp_path / "model", {"steps": 3, "note": "α"})
    loaded = weights.load(tmp_path / "model")
    assert loaded.config == model.config and not loaded.training
    rounded = {k: weights.compacted(k, v).to(v.dtype) for k, v in model.state_dict().items()}
    assert equal_tensors(loaded.state_dict(), rounded)
    assert weights.load_config(tmp_path / "model") == (model.config, {"steps": 3, "note": "α"})
    rgb = torch.rand(1, 3, 24, 17, generator=torch.Generator().manual_seed(0))
    model.load_state_dict(rounded)
    with torch.no_grad():
        first, second = model(rgb, 0.0), loaded(rgb, 0.0)
    assert torch.equal(first.estimated_bpp, second.estimated_bpp)
    assert torch.equal(first.x_hat, second.x_hat)
    assert weights.digest(loaded) == weights.digest(model)


def test_whole_weights_and_ones_above_what_float16_holds_come_back_bit_for_bit(tmp_path):
    model = tiny_model(seed=2)
    model.rate_slope.copy_(torch.tensor([70000.0, 3.3]))
    weights.save_model(model, tmp_path / "model", {})
    assert weights.load(tmp_path / "model").rate_slope.tolist() == model.rate_slope.tolist()
    weights.save_model(model, tmp_path / "model", {}, compact=False)
    loaded = weights.load(str(tmp_path / "model"))
    assert equal_tensors(loaded.state_dict(), model.state_dict())
    assert weights.digest(loaded) == weights.digest(model)


@pytest.mark.parametrize(
    "name, bits",
    [
        ("decoder.trunk.tail.0.first", 8),
        ("decoder.entry.mix", 12),
        ("bit_model.causal", 12),
        ("encoder.stem", 0),
    ],
)
def test_large_tensors_are_rounded_by_output_channel_once_and_for_all(name, bits):
    """To half a step of 2^(e - bits), or as float16 does; an even power, zeros and tiny channels too."""
    value = torch.randn(16, 64, 2, 2, generator=torch.Generator().manual_seed(0))
    value *= torch.logspace(-4, 2, 16).view(-1, 1, 1, 1)
    value[0], value[1], value[2] = 0, 1e-42, value[2] / value[2].abs().max()
    name = f"streams.Y.{name}.weight"
    stored = weights.compacted(name, value)
    assert stored.dtype == torch.float16
    if not bits:
        assert torch.equal(stored, value.half())
    largest = value.abs().amax((1, 2, 3), keepdim=True).double()
    step = 2 ** (largest.clamp(min=1e-9).log2().ceil() - bits) if bits else 0
    error = (stored.double() - value.double()).abs()
    assert bool((error <= step / 2 + value.double().abs() * 2**-11 + 2**-25).all())
    if bits == 8:
        assert torch.equal((stored.double() / step)[2:].frac(), torch.zeros(14, 64, 2, 2, dtype=torch.double))
    assert torch.equal(weights.compacted(name, stored.float()), stored)
    assert torch.equal(weights.compacted(name, value[:1]), value[:1].half())  # small ones are not rounded


def test_zeros_take_no_room(tmp_path):
    model = tiny_model(**{"model.luma.width": 32})
    sizes = []
    for kind in ("all", "zeros"):
        weights.save_model(model, tmp_path / kind, {})
        sizes.append(sum(path.stat().st_size for path in (tmp_path / kind).glob("*.gz")))
        model.streams["Y"].encoder.trunk.zero_()
    zeros = sum(
        value.numel() for name, value in model.state_dict().items() if "encoder" in name and not value.any()
    )
    assert zeros > 5000 and sizes[0] - sizes[1] > 1.7 * zeros  # of 2 bytes each


def test_uneven_groups_come_back_and_their_causal_masks(tmp_path):
    model = tiny_model()
    model.streams["Y"].set_groups([1, 2, 3, 10])
    weights.save_model(model, tmp_path / "model", {})
    loaded = weights.load(tmp_path / "model").streams["Y"]
    assert torch.equal(loaded.groups, model.streams["Y"].groups)
    assert torch.equal(loaded.bit_model.causal_mask, model.streams["Y"].bit_model.causal_mask)
    assert not torch.equal(loaded.bit_model.causal_mask, tiny_model().streams["Y"].bit_model.causal_mask)


def test_a_model_folder_is_replaced_as_a_whole(folder):
    (folder / "left-over.txt").write_text("old")
    weights.save_model(tiny_model("rgb"), folder, {})
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "weights-0.safetensors.gz"]
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    assert weights.load(folder).config.variant == "rgb"


def test_full_disk_keeps_the_earlier_model(folder):
    before = weights.digest(weights.load(folder))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with pytest.raises(DataError, match=r"cannot be written .*nothing of it was kept") as error:
            weights.save_model(tiny_model(seed=1), folder, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "None" not in str(error.value)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    assert weights.digest(weights.load(folder)) == before


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, SystemExit])
def test_an_error_while_a_folder_is_filled_leaves_nothing(tmp_path, error):
    with pytest.raises(error), weights.new_folder(tmp_path / "new") as place:
        (place / "half").write_text("x")
        raise error
    assert not list(tmp_path.iterdir())


def test_unknown_names_and_folders_are_refused_and_released_models_are_known(tmp_path):
    with pytest.raises(UsageError, match="unknown model 'no-such-model'"):
        weights.load("no-such-model")
    with pytest.raises(DataError, match="none: no such folder"):
        weights.load(tmp_path / "none")
    with pytest.raises(DataError, match="not a model folder"):
        weights.load(tmp_path)
    names = model_files.released()
    assert sorted(names) == sorted(p.parent.name for p in model_files.released_folder().glob("*/config.json"))
    for name in names:
        with pytest.raises(UsageError, match=f"did you mean '{name}'"):
            weights.load(f"{name}x")


@pytest.mark.parametrize(
    "content, words",
    [
        ("{", "not the configuration"),
        ("[]", "not the configuration"),
        ("{}", "not the configuration"),
        ('{"model": {"varriant": "luma"}}', "did you mean 'variant'"),
        ('{"model": {"variant": "luna"}}', "did you mean 'luma'"),
        ('{"model": {"luma": {"width": "8"}}}', "width is '8': expected int"),
    ],
)
def test_a_configuration_that_is_none_is_refused(folder, content, words):
    (folder / "config.json").write_text(content)
    with pytest.raises(DataError, match=words) as error:
        weights.load(folder)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t: t.pop("rate_slope"), r'Missing .*"rate_slope"'),
        (lambda t: t.update(other=torch.zeros(1)), r'Unexpected .*"other"'),
        (lambda t: t.update(rate_slope=torch.zeros(4)), r"size mismatch for rate_slope: .*\[4\].*\[2\]"),
    ],
    ids=["missing", "superfluous", "misshapen"],
)
def test_tensors_of_another_configuration_are_named(folder, change, words):
    change_tensors(folder, change)
    with pytest.raises(DataError, match=f"of another configuration: {words}"):
        weights.load(folder)


def test_damaged_and_missing_weights_are_refused_by_file(folder):
    path = folder / "weights-0.safetensors.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"weights-0\.safetensors\.gz: not a whole"):
        weights.load(folder)
    path.unlink()
    with pytest.raises(DataError, match=r"no weights-0\.safetensors\.gz"):
        weights.load(folder)


def test_the_digest_is_of_every_weight_and_of_nothing_else():
    model = tiny_model()
    before = weights.digest(model)
    assert before == weights.digest(tiny_model()) != weights.digest(tiny_model(seed=1))
    for name, value in model.state_dict().items():
        entry = value.view(-1)[0]
        old = entry.clone()
        entry.add_(1)
        assert weights.digest(model) != before, name
        entry.copy_(old)
    assert weights.digest(model.train()) == before


@pytest.mark.parametrize("variant, key", [("luma", "Y"), ("fusion", "Cr")])
def test_a_stream_is_copied_with_lumas_rate_slope_and_the_others_are_left(variant, key):
    source, target, fresh = tiny_model(variant, seed=1), tiny_model("fusion"), tiny_model("fusion")
    source.rate_slope.fill_(7.0)
    source.streams[key].set_groups([1, 2, 3, 10])
    weights.copy_stream(source, target, key)
    assert torch.equal(target.rate_slope, (source if key == "Y" else fresh).rate_slope)
    for other, stream in target.streams.items():
        expected = source if other == key else fresh
        assert equal_tensors(stream.state_dict(), expected.streams[other].state_dict())


@pytest.mark.parametrize(
    "variant, changes, key",
    [
        ("luma", {}, "Cb"),
        ("luma", {"model.luma.width": 9}, "Y"),
        ("luma", {"model.luma.levels": 6}, "Y"),
        ("independent", {}, "Cb"),
        ("fusion", {"model.luma.code_channels": 20}, "Cr"),
    ],
)
def test_streams_that_differ_are_not_copied(variant, changes, key):
    with pytest.raises(DataError, match=f"stream {key}: "):
        weights.copy_stream(tiny_model(variant, **changes), tiny_model("fusion", seed=1), key)


def test_files_of_a_model_can_be_read_by_whom_the_umask_allows(tmp_path):
    (tmp_path / "opened").touch()
    weights.save_model(tiny_model(), tmp_path / "model", {}, entropy={"Y.x": np.zeros(2, np.int16)})
    modes = {path.stat().st_mode for path in (tmp_path / "model").iterdir()}
    assert modes == {(tmp_path / "opened").stat().st_mode}


def test_what_a_folder_shares_must_lie_beside_it(tmp_path):
    shutil.copytree(model_files.released_folder() / "independent", tmp_path / "independent")
    with pytest.raises(DataError, match="fusion: no weights-0"):
        weights.load(tmp_path / "independent")
    with pytest.raises(DataError, match="shares the entropy coder of fusion, which is not beside it"):
        model_files.entropy_tensors(tmp_path / "independent")
