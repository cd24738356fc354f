"""Small codecs made within a notebook: systems of equal size and training, and their real files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mcml.lab.experiments import Job, rgb_recipe, run_all, with_color_code
from mcml.lab.workers import one_thread, side_by_side
from mcml.model import weights
from mcml.model.model import Model
from mcml.model.settings import load_recipe
from mcml.training.entropy import EntropyTrainer, FrozenBits

HIDDEN = {"Y": 48, "RGB": 64, "Cb": 32, "Cr": 32}  # units of briefly trained entropy coders


def equal_systems(
    profile: str, settings: Mapping[str, Any], color_channels: int, images: Sequence[np.ndarray], *,
    workers: int = 0,
) -> dict[str, Model]:  # fmt: skip
    """Train fusion, independent and rgb for equal steps and at about equal multiplications a pixel.

    Luma is trained first; both kinds of colour streams then learn on its bits for as many steps, and
    the joint network learns for as many as both together.

    Args:
        profile: training profile.
        settings: of all recipes, by dotted name; "train.steps" is luma's.
        color_channels: bits a position in each colour stream.
        images: (H, W, 3) uint8 each.
        workers: processes, 0 for as many as there are cores.

    Returns:
        Models by variant: "fusion", "independent", "rgb".
    """
    colored = {
        variant: with_color_code(load_recipe(profile, variant).changed(**settings), color_channels)
        for variant in ("fusion", "independent")
    }
    joint = rgb_recipe(colored["fusion"], 2 * colored["fusion"].train.steps)
    first = {"luma": Job(load_recipe(profile, "luma").changed(**settings)), "rgb": Job(joint)}
    started = run_all(first, images, workers=workers)
    luma = started["luma"][0]
    jobs = {name: Job(recipe.changed(**{"stage.train": "Cb,Cr"}), luma) for name, recipe in colored.items()}
    found = run_all(jobs, images, workers=workers) | {"rgb": started["rgb"]}
    return {name: model for name, (model, _) in found.items()}


@one_thread()
def entropy_coder(
    model: Model, images: Sequence[np.ndarray], steps: int, *, seed: int = 0
) -> dict[str, np.ndarray]:
    """Train a small entropy coder on the bits of a model's encoders, which stay as they are.

    Args:
        model: any variant.
        images: (H, W, 3) uint8 each.
        steps: of all streams' context models together.
        seed: of weights and patches.

    Returns:
        The coder's integers by "stream.name", as `mcml.weights.save_model` takes them.
    """
    trainer = EntropyTrainer(model, FrozenBits(model, images), hidden=HIDDEN, seed=seed)
    trainer.fit(list(model.streams), steps=steps, batch=4, side=16)
    return trainer.export(level_tiles=8)


def make_codecs(
    models: Mapping[str, Model], images: Sequence[np.ndarray], steps: int, folder: Path, *,
    coder_of: Mapping[str, str] | None = None, workers: int = 0,
) -> dict[str, Path]:  # fmt: skip
    """Give models an entropy coder and save them as codecs that write files.

    Args:
        models: by name.
        images: (H, W, 3) uint8 each, which the coders learn from.
        steps: see `entropy_coder`.
        folder: where the models' folders go.
        coder_of: by a model's name, the name of the model whose coder it shares (one that makes
            the same bits); without an entry a model has its own.
        workers: processes, 0 for as many as there are cores.

    Returns:
        Folders for `mcml.codec.get_codec`, by name.
    """
    owner = {name: (coder_of or {}).get(name, name) for name in models}
    trained = list(dict.fromkeys(owner.values()))
    calls = [partial(entropy_coder, models[name], images, steps) for name in trained]
    coder = dict(zip(trained, side_by_side(calls, workers), strict=True))
    places = {name: folder / f"model-{i}" for i, name in enumerate(models)}
    for name, model in models.items():
        record = {"entropy_steps": steps, "entropy_coder_of": owner[name]}
        weights.save_model(model, places[name], record, half=False, entropy=coder[owner[name]])
    return places
