"""Speed of training and of inference, beside the machine's own matrix products.

    python benchmarks/speed.py [--profile cpu] [--quantizer binary] [--variants luma,fusion] [--threads 1]
        [--csv FILE]

Training: floating-point operations a second of whole steps (drawing patches, forward,
backward, clipping, Adam, averaging), counted as 6 per multiply-accumulate of what learns and
2 of what is frozen, context models in, against the rate of a square matrix product of the
same precision measured in the same run, and against a trunk's 3 x 3 convolution on the training grid
(a product of 1,024 understates a core with AMX threefold). Inference: encode and decode of a 768 x 512
image, medians of five.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mcml.base import STRIDE
from mcml.base.files import atomic_write, to_csv
from mcml.data.patches import PatchStore
from mcml.model.cost import codec_cost, equal_cost_rgb, part_costs
from mcml.model.model import build
from mcml.model.settings import Recipe, load_recipe
from mcml.training.trainer import Trainer


def clock(run: Callable[[], object], device: torch.device, times: int) -> float:
    """Return the median seconds of `times` runs after two that do not count."""
    found = []
    for index in range(times + 2):
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if index >= 2:
            found.append(time.perf_counter() - began)
    return statistics.median(found)


def product_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return FLOP/s of a square matrix product: 1024 on a CPU, 8192 on a GPU."""
    side = 8192 if device.type == "cuda" else 1024
    a = torch.randn(side, side, device=device).to(dtype)
    return 2 * side**3 / clock(lambda: a @ a, device, 15)


def convolution_flops(recipe: Recipe, device: torch.device, dtype: torch.dtype) -> float:
    """Return FLOP/s of luma's 3 x 3 trunk convolution, forward, with a training batch's shape."""
    width, side = recipe.model.luma.width, recipe.train.patch_px // STRIDE
    layer = torch.nn.Conv2d(width, width, 3, padding=1).to(device, dtype, memory_format=torch.channels_last)
    x = torch.randn(recipe.train.batch, width, side, side, device=device).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        return 18 * width**2 * recipe.train.batch * side**2 / clock(lambda: layer(x), device, 45)


def step_flops(recipe: Recipe) -> float:
    """Return FLOP of one training step, the mean over steps with and without context models."""
    pixels = recipe.train.batch * recipe.train.patch_px**2
    trained, total = recipe.trained_streams(), 0.0
    for row in part_costs(recipe.model):
        if row["part"].endswith("_model"):
            share = 6 / recipe.train.context_every if row["stream"] in trained else 0.0
        elif row["stream"] not in trained:
            share = 2.0 if row["part"] in ("encoder", "importance") else 0.0
        else:
            share = 2.0 if getattr(recipe.stage, f"{row['part']}_from", 0.0) >= 1 else 6.0
        total += share * row["macs_per_pixel"] * pixels
    return total


def training(recipe: Recipe, steps: int) -> dict[str, float]:
    """Time training steps on random photographs with every part learning."""
    photographs = torch.randint(0, 256, (8, 576, 576, 3), dtype=torch.uint8).numpy()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(recipe, lambda device: PatchStore(list(photographs), device), Path(folder))
        every = recipe.train.context_every

        def run() -> None:
            for _ in range(every):
                trainer.train_step()
                trainer.step += 1

        seconds = clock(run, trainer.device, max(5, steps // every)) / every
        dtype = torch.bfloat16 if recipe.train.precision == "bf16" else torch.float32
        peak = product_flops(trainer.device, dtype)
        convolution = convolution_flops(recipe, trainer.device, dtype)
    rate = step_flops(recipe) / seconds
    return {
        "images_per_s": recipe.train.batch / seconds,
        "train_gflops": rate / 1e9,
        "product_gflops": peak / 1e9,
        "share_percent": 100 * rate / peak,
        "convolution_gflops": convolution / 1e9,
        "share_of_convolution_percent": 100 * rate / convolution,
        "mpixel_per_s": recipe.train.batch * recipe.train.patch_px**2 / seconds / 1e6,
    }


def inference(recipe: Recipe, device: torch.device) -> dict[str, float]:
    """Time the networks on one image, encoder and decoder apart, without entropy coding."""
    model = build(recipe.model).to(device, memory_format=torch.channels_last).eval()
    rgb = torch.rand(1, 3, 512, 768, device=device)
    with torch.no_grad():
        output = model(rgb, 0.0)
        encode = clock(lambda: model(rgb, 0.0, decode=(), estimate=False), device, 5)

        def decode() -> None:
            codes = {key: of.code for key, of in output.streams.items()}
            for key, code in codes.items():
                if recipe.model.quantizer == "scalar":
                    model.streams[key].decode(code, torch.zeros(1, device=device), codes.get("Y"))
                else:
                    model.streams[key].decoder(code, codes.get("Y"))

        return {"encode_s": encode, "decode_s": clock(decode, device, 5)}


def main() -> None:
    """Print a table and write it as CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--quantizer", default="binary")
    parser.add_argument("--variants", default="luma,independent,fusion,rgb")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.NAME=VALUE")
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    for variant in options.variants.split(","):
        settings = ["stage.start=plain", "stage.encoder_from=0.0", *options.set]
        recipe = load_recipe(options.profile, variant, settings, quantizer=options.quantizer)
        if variant == "rgb":
            wanted = equal_cost_rgb(
                load_recipe(options.profile, "fusion", settings, quantizer=options.quantizer).model
            ).luma
            recipe = recipe.changed(
                **{"model.luma.width": wanted.width, "model.luma.code_channels": wanted.code_channels}
            )
        parameters, macs = codec_cost(recipe.model)
        row = {
            "variant": variant, "quantizer": options.quantizer, "profile": options.profile,
            "device": str(device), "threads": options.threads,
            "precision": recipe.train.precision, "parameters": parameters, "kmacs_per_pixel": macs / 1e3,
            **training(recipe, options.steps), **inference(recipe, device),
        }  # fmt: skip
        rows.append(row)
        print(
            "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()),
            flush=True,
        )
    if options.csv:
        atomic_write(options.csv, to_csv(rows))


if __name__ == "__main__":
    main()
