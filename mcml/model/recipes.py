"""What to train and how: the settings of `mcml train`, their profiles and their checks."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mcml.base.errors import UsageError, choose
from mcml.model.model import VARIANTS, ModelConfig
from mcml.training.loss import LossConfig

PARTS = ("decoder", "importance", "encoder")  # in the order in which they are set free


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Budget, data and optimiser."""

    steps: int = 2000  # 0: until `minutes` are over
    minutes: float = 0.0  # 0: no limit; else the learning rate falls with the clock
    batch: int = 16  # patches a step, of all processes together
    patch_px: int = 128  # a multiple of 8
    augment: bool = True  # rescaling, exposure and saturation besides mirroring
    lr: float = 1e-3  # Adam's, after warm-up; a cosine takes it to a hundredth
    context_lr: float = 5e-3  # of the context models, which only estimate rates
    warmup: float = 0.03  # share of the budget
    clip: float = 1.0  # largest norm of the codec's gradient, and of the context models'
    ema: float = 0.998  # decay of the averaged weights, which are what is evaluated and released
    precision: str = "32"  # or "bf16": autocast with float32 master weights
    context_every: int = 4  # steps between two of the context models
    compile: bool = False  # torch.compile: worth its minutes on a GPU
    seed: int = 0

    def __post_init__(self) -> None:
        _check_numbers(self, {
            "steps": (0, 10**9), "minutes": (0, 10**5), "batch": (1, 65536), "patch_px": (8, 4096),
            "lr": (0, 1e9), "context_lr": (0, 1e9), "warmup": (0, 0.9), "clip": (1e-9, 1e9),
            "ema": (0, 0.99999), "context_every": (1, 1000), "seed": (0, 2**31),
        })  # fmt: skip
        choose("precision", self.precision, ("32", "bf16"))
        if not self.steps and not self.minutes:
            raise UsageError("steps and minutes are both 0: give one of them")
        if self.patch_px % 8:
            raise UsageError(f"patch_px is {self.patch_px}: expected a multiple of 8")


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """Where training starts and what learns when; `_from` are shares of the budget, 1 is never."""

    start: str = "threshold"  # or "plain": random weights
    train: str = ""  # streams that learn, separated by commas; "" is all. The others are frozen
    decoder_from: float = 0.0
    importance_from: float = 0.0
    encoder_from: float = 1.0
    encoder_lr: float = 0.1  # share of `lr`
    open_until: float = 0.0  # mask wholly open before that share, the dial's level after it
    flat_share: float = 0.0  # of the samples that are trained with one level everywhere
    rate_target: float = 0.0  # mean p of the trained streams to reach by dual ascent; 0: lambda by dial

    def __post_init__(self) -> None:
        choose("start", self.start, ("threshold", "plain"))
        shares = dict.fromkeys(
            ("decoder_from", "importance_from", "encoder_from", "open_until", "flat_share"), (0, 1)
        )
        _check_numbers(self, {**shares, "encoder_lr": (0, 10), "rate_target": (0, 1)})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a run but the photographs."""

    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    stage: StageConfig = field(default_factory=StageConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        self.trained_streams()
        if self.loss.color_difference != "none" and self.model.variant == "luma":
            raise UsageError("the luma variant has no colours: loss.color_difference must be 'none'")

    def trained_streams(self) -> tuple[str, ...]:
        """Return the stream keys that learn."""
        names = [name.strip() for name in self.stage.train.split(",") if name.strip()]
        for name in names:
            choose("stream", name, self.model.streams)
        return tuple(key for key in self.model.streams if not names or key in names)

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values."""
        return asdict(self)

    def changed(self, **settings: Any) -> Recipe:
        """Return a copy with settings by dotted name, as ``changed(**{"train.steps": 5})``."""
        values = self.to_dict()
        for name, value in settings.items():
            _assign(values, name, value)
        return from_dict(values)


KINDS = {"model": ModelConfig, "loss": LossConfig, "stage": StageConfig, "train": TrainConfig}


def from_dict(values: Mapping[str, Any]) -> Recipe:
    """Build a recipe from nested values; unknown names raise `UsageError` with the nearest."""
    parts: dict[str, Any] = {}
    for name, content in values.items():
        kind = KINDS[choose("table", name, KINDS)]
        if not isinstance(content, Mapping):
            raise UsageError(f"'{name}' is {content!r}: expected a table of settings")
        if kind is ModelConfig:
            parts[name] = ModelConfig.from_dict(content)
            continue
        known = {f.name: f for f in fields(kind)}
        given = {}
        for key, value in content.items():
            expected = str(known[choose(f"{name} setting", key, known)].type)
            given[key] = _cast(f"{name}.{key}", value, expected)
        parts[name] = kind(**given)
    return Recipe(**parts)


def _cast(name: str, value: Any, expected: str) -> Any:
    kinds: dict[str, tuple[type, ...]] = {
        "int": (int,),
        "float": (int, float),
        "str": (str,),
        "bool": (bool,),
    }
    if not isinstance(value, kinds[expected]) or (isinstance(value, bool) and expected != "bool"):
        raise UsageError(f"{name} is {value!r}: expected {expected}")
    return float(value) if expected == "float" else value


def _assign(values: dict[str, Any], name: str, value: Any) -> None:
    *tables, last = name.split(".")
    place = values
    for table in tables:
        place = place[choose("table", table, [k for k, v in place.items() if isinstance(v, dict)])]
    if not tables:
        raise UsageError(f"setting '{name}': expected table.name, as in train.steps")
    place[choose("setting", last, place)] = value


def _check_numbers(config: Any, limits: Mapping[str, tuple[float, float]]) -> None:
    for name, (low, high) in limits.items():
        value = getattr(config, name)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
            raise UsageError(f"{name} is {value!r}: expected {low} to {high}")


# ------------------------------------------------------------------------------ profiles


def profile_folder() -> Path:
    """Return the folder of the training profiles."""
    return Path(__file__).with_name("profiles")


def training_profiles() -> list[str]:
    """Return the names of the training profiles."""
    return sorted(path.stem for path in profile_folder().glob("*.toml"))


def load_recipe(profile: str, variant: str, settings: Sequence[str] = ()) -> Recipe:
    """Read a profile for a variant, with settings given as "table.name=value" on top.

    A profile's tables [model], [loss], [stage], [train] hold for every variant; those under
    [variants.NAME] lie over them.

    Raises:
        UsageError: for an unknown profile, variant, table or setting, or a wrong type.
    """
    path = profile_folder() / f"{choose('training profile', profile, training_profiles())}.toml"
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"training profile {path.name} is not valid TOML: {error}") from error
    values = Recipe().to_dict()
    variants = content.pop("variants", {})
    for name in variants:
        choose("variant", name, VARIANTS)
    own = variants.get(variant, {})
    for tables in (content, own):
        for table, entries in flat(tables).items():
            _assign(values, table, entries)
    _assign(values, "model.variant", variant)
    for text in settings:
        name, found, value = text.partition("=")
        if not found:
            raise UsageError(f"--set {text}: expected table.name=value")
        _assign(values, name.strip(), _parse(value.strip()))
    return from_dict(values)


def flat(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted name."""
    found: dict[str, Any] = {}
    for name, value in tables.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def _parse(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
