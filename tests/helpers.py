"""What several test modules look up: the checkout, its notebooks, and the smallest networks."""

import struct
from pathlib import Path

from PIL import ImageCms

from mcml import data
from mcml.base import files

ROOT = files.repo_root()
SIZES = {"width": 8, "code_channels": 16, "levels": 5, "groups": 1, "blocks": 1}
TINY = {f"model.{stream}.{name}": value for stream in ("luma", "color") for name, value in SIZES.items()}
SCALAR = {f"model.{stream}.quantizer": "scalar" for stream in ("luma", "color")}
SCALAR |= {"model.luma.prior_width": 12, "model.color.prior_width": 8, "loss.gamma": 1.5}
TINY |= {"train.batch": 4, "train.patch_px": 32, "stage.start": "plain"}


def notebooks() -> list[Path]:
    """Return the committed notebooks in order."""
    return sorted((ROOT / "notebooks").glob("*.ipynb"))


def portrait():
    """Return 160 x 128 pixels of a photograph."""
    return data.image_set("embedded").read("astronaut")[:128, 60:220].copy()


def tiny_recipe(variant="luma", **settings):
    """Return a recipe of networks that train a step in a hundredth of a second."""
    from mcml.model.settings import Recipe

    return Recipe().changed(**{**TINY, "model.variant": variant, "train.steps": 6, **settings})


def tiny_codec(folder, variant="fusion", steps=2, seed=0, **settings):
    """Write a model with an entropy coder that a second makes, and return its codec."""
    import torch

    from mcml.codec.learned import LearnedCodec
    from mcml.data.patches import PatchStore
    from mcml.model import weights
    from mcml.model.model import build
    from mcml.training.entropy import EntropyTrainer, FrozenBits
    from mcml.training.threshold_start import start

    patches = PatchStore([portrait()]).sample(48, 64, torch.Generator().manual_seed(seed))
    model = build(tiny_recipe(variant, **settings).model, seed).eval()
    start(model, patches.float() / 255)
    for stream in model.streams.values():
        if stream.importance is not None:  # which starts uniform
            generator = torch.Generator().manual_seed(seed)
            torch.nn.init.normal_(stream.importance.last.weight, std=2, generator=generator)
    hidden, bits = {"Y": 8, "RGB": 8, "Cb": 4, "Cr": 4}, FrozenBits(model, [portrait()])
    budget = {"steps": steps, "joint": True, "batch": 2, "side": 8}
    trainer = EntropyTrainer(model, bits, hidden=hidden, seed=seed, **budget)
    trainer.fit()
    weights.save_model(model, folder, {}, entropy=trainer.export(4))
    return LearnedCodec(folder)


def tiny_scalar(folder, variant="fusion", seed=0, **settings):
    """Write a model of scalar latents whose every weight matters, and return its codec."""
    import torch

    from mcml.codec.learned import LearnedCodec
    from mcml.model import weights
    from mcml.model.model import build

    model = build(tiny_recipe(variant, **{**SCALAR, **settings}).model, seed)
    drawn = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for stream in model.streams.values():
            stream.encoder.code.weight *= 12
            hyper = [] if stream.hyperprior is None else [stream.hyperprior, stream.hyperprior.analysis[-1]]
            for layer in (*stream.prior.last, *hyper):
                for value in layer.parameters(recurse=False):
                    value += 0.3 * torch.randn(value.shape, generator=drawn)
            anchors = torch.linspace(-2, 3, len(stream.log_gain))[:, None]
            stream.log_gain.copy_(anchors + 0.5 * torch.randn(stream.log_gain.shape[1], generator=drawn))
    weights.save_model(model, folder, {})
    return LearnedCodec(folder)


def tiny_arguments(**settings):
    """Return the same settings for a command line."""
    return [f"--set={name}={value}" for name, value in {**TINY, **settings}.items()]


def equal_tensors(first, second):
    """Return whether two dictionaries hold the same tensors, bit for bit, NaN excluded."""
    import torch

    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )


def rows_of(folder):
    """Return the log without what the clock decides, as text so that NaN equals NaN."""
    from mcml.training.run import read_log

    clock = ("seconds", "images_per_s")
    return [repr({k: v for k, v in row.items() if k not in clock}) for row in read_log(folder)]


def flat_optimizer(trainer):
    """Return Adam's state by number and name."""
    state = trainer.optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, entry in state.items() for name, value in entry.items()}


def failed(result, code, *words):
    """Assert that a command ended with one sentence on stderr and nothing else."""
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    assert result.stderr.startswith("mcml: ") and result.stderr.count("\n") == 1, result.stderr
    for word in words:
        assert word in result.stderr


def files_of(folder):
    """Return the names of all files in a folder and below it."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def icc(kind):
    """Make the profile of sRGB "linear", "exchanged" (linear, red and green swapped) or linear "grey"."""
    raw = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    curve = raw.index(b"para") + 12  # gamma, a, b, c, d as 16.16 fixed point (ICC.1:2010, 10.16)
    raw = raw[:curve] + struct.pack(">5i", 1 << 16, 1 << 16, 0, 1 << 16, 0) + raw[curve + 20 :]
    if kind == "exchanged":
        return raw.replace(b"rXYZ", b"?XYZ").replace(b"gXYZ", b"rXYZ").replace(b"?XYZ", b"gXYZ")
    return raw.replace(b"RGB XYZ ", b"GRAYXYZ ").replace(b"rTRC", b"kTRC") if kind == "grey" else raw
