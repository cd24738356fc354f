"""Every setting of networks, loss and training, without torch.

A `Recipe` decides a training run but for the photographs. Its tables `model`, `loss`, `stage` and `train`
come from a profile (``profiles/*.toml``), over which ``--set table.name=value`` lies.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

from mcml.base import STRIDE
from mcml.base.errors import UsageError, choose

VARIANTS = {
    "luma": "Y alone",
    "independent": "Y, Cb and Cr, each on its own",
    "fusion": "Y, Cb and Cr, the colour decoders borrowing luma: the poster",
    "rgb": "one network on R, G and B together, with the same compression module: [7]'s idea",
}
STREAMS = {"luma": ("Y",), "independent": ("Y", "Cb", "Cr"), "fusion": ("Y", "Cb", "Cr"), "rgb": ("RGB",)}
QUANTIZERS = {
    "binary": "the poster's: an importance map's nested mask over a code of bits",
    "scalar": "rounded latents with gains by dial and a quadtree prior",
}
BINARY_ONLY = ("levels", "importance")  # settings of a stream that count for one quantizer
SCALAR_ONLY = ("quantizer", "prior_width", "prior_steps", "hyperprior")
DIAL_RANGES = {"binary": (-3.0, 3.0), "scalar": (0.0, 1.0)}  # that the networks are trained for


def number(default: float, low: float, high: float) -> Any:
    """Declare a setting that is a number from `low` to `high`, of its default's type."""
    return field(default=default, metadata={"range": (low, high)})


def word(default: str, *known: str) -> Any:
    """Declare a setting that is `default` or one of the other `known` words."""
    return field(default=default, metadata={"known": (default, *known)})


class Settings:
    """A frozen dataclass whose values are checked, and which is built from nested mappings."""

    def __post_init__(self) -> None:
        """Check types, ranges and words (`UsageError` names the first); a float may be a whole number."""
        for f in fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            kind = type(f.default_factory()) if f.default is MISSING else type(f.default)
            if kind is float and type(value) is int:
                object.__setattr__(self, f.name, value := float(value))
            if type(value) is not kind:
                raise UsageError(f"{f.name} is {value!r}: expected {kind.__name__}")
            if "known" in f.metadata:
                choose(f.name, value, f.metadata["known"])
            if "range" in f.metadata:
                low, high = f.metadata["range"]
                if not low <= value <= high:
                    raise UsageError(f"{f.name} is {value!r}: expected {low:g} to {high:g}")

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values for a file; `changed` of the defaults inverts it."""
        return asdict(self)  # type: ignore[call-overload]

    def changed(self, _where: str = "", /, **settings: Any) -> Self:
        """Return a copy with other values, nested or by dotted name: ``changed(**{"train.steps": 5})``."""
        known = {f"{_where}{f.name}": f.name for f in fields(self)}  # type: ignore[arg-type]
        values: dict[str, Any] = {}
        for path, given in settings.items():
            first, _, rest = path.partition(".")
            name = known[choose("setting", _where + first, known)]
            is_table = isinstance(getattr(self, name), Settings)
            value = {rest: given} if rest else given
            if is_table and not isinstance(value, Mapping):
                raise UsageError(f"{_where}{name} is {value!r}: expected a table of settings")
            if not is_table and isinstance(value, Mapping):
                raise UsageError(f"{_where}{name} is one setting: it holds no others")
            values[name] = values.get(name, {}) | value if is_table else value
        for name, value in values.items():
            if isinstance(value, Mapping):
                values[name] = getattr(self, name).changed(f"{_where}{name}.", **value)
        return replace(self, **values)  # type: ignore[type-var]


@dataclass(frozen=True, kw_only=True)
class StreamConfig(Settings):
    """One stream's networks and compression module."""

    quantizer: str = word("binary", "scalar")
    width: int = number(96, 1, 1024)  # channels of the trunks
    code_channels: int = number(256, 1, 1024)  # n, bits (at most) or latents a position
    groups: int = number(5, 1, 32)  # groups of residual blocks, each with a skip
    blocks: int = number(3, 1, 32)  # residual blocks a group
    levels: int = number(32, 2, 256)  # binary: L of the importance map; its L - 1 groups share the n bits
    importance: str = word("adaptive", "uniform")  # binary; "uniform": no map, the dial's level everywhere
    prior_width: int = number(64, 1, 1024)  # scalar: features of the prior
    prior_steps: int = number(4, 1, 4)  # scalar: 1, 2 or 4; 1 sees no latents of the stream itself
    hyperprior: bool = True  # scalar: whether a stream that knows no other has one

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.quantizer == "scalar":
            for name in BINARY_ONLY:  # of the other quantizer, in whose profiles they stand
                object.__setattr__(self, name, type(self).__dataclass_fields__[name].default)
            if self.code_channels % 4:
                raise UsageError(f"code_channels is {self.code_channels}: latents need a multiple of 4")
            if self.prior_steps == 3:
                raise UsageError("prior_steps is 3: expected 1, 2 or 4")
        elif self.code_channels < self.levels - 1:
            raise UsageError(
                f"code_channels is {self.code_channels}: {self.levels} levels need {self.levels - 1} or more"
            )

    def even_groups(self) -> list[int]:
        """Return the sizes of the code's L - 1 groups, as equal as they can be; the larger ones come last."""
        count = self.levels - 1
        return [(self.code_channels + i) // count for i in range(count)]


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Settings):
    """A variant and its streams."""

    variant: str = word("fusion", *VARIANTS)
    luma: StreamConfig = field(default_factory=StreamConfig)  # also the rgb variant's one stream
    color: StreamConfig = field(default_factory=lambda: StreamConfig(width=64, code_channels=64, levels=16))
    # scalar: what tells colour's priors: "luma" (and Cr's Cb too), "color" (Cr's Cb alone), or "none". A
    # prior that is told nothing has its own hyperprior
    condition: str = word("luma", "color", "none")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.luma.quantizer != self.color.quantizer and len(self.streams) > 1:
            raise UsageError(
                f"luma is {self.luma.quantizer}, color {self.color.quantizer}: expected one quantizer"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings that count for each stream's quantizer."""
        tables = super().to_dict()
        for key in ("luma", "color"):
            others = BINARY_ONLY if tables[key]["quantizer"] == "scalar" else SCALAR_ONLY
            tables[key] = {name: value for name, value in tables[key].items() if name not in others}
        if self.quantizer == "binary":
            del tables["condition"]
        return tables

    @property
    def quantizer(self) -> str:
        """Return "binary" or "scalar", of all streams."""
        return self.luma.quantizer

    @property
    def dial_range(self) -> tuple[float, float]:
        """Return the dial's range that the networks are trained for."""
        return DIAL_RANGES[self.quantizer]

    @property
    def streams(self) -> tuple[str, ...]:
        """Return the stream keys in coding order."""
        return STREAMS[self.variant]

    def stream(self, key: str) -> StreamConfig:
        """Return a stream's configuration."""
        return self.color if key in ("Cb", "Cr") else self.luma

    def known_to(self, key: str) -> tuple[str, ...]:
        """Return the streams whose latents a stream's prior is told, all of them coded before it."""
        before = self.streams[: self.streams.index(key)]
        return tuple(k for k in before if self.condition == "luma" or (self.condition, k) == ("color", "Cb"))


@dataclass(frozen=True, kw_only=True)
class LossConfig(Settings):
    """What the loss is made of; the defaults are the poster's L1 with every stream's rate."""

    # "l1" in grey levels (the poster), or "l2" in squared grey levels (Li et al.; favours PSNR)
    distortion: str = word("l1", "l2")
    # weight of Cb's and Cr's distortion against Y's; no unit. The poster does not give its value
    gamma: float = number(1.0, 0, 1e9)
    # whose importance maps cost: "all", or "luma" as the poster prints it (colour bits are then free)
    rate_streams: str = word("all", "luma")
    # scalar: percent of squared error that one percent of 1 - MS-SSIM or of the colour difference is worth
    dissimilarity: float = number(0.0, 0, 100)
    color_difference: float = number(0.0, 0, 100)


@dataclass(frozen=True, kw_only=True)
class StageConfig(Settings):
    """Where training starts and what learns when; `_from` are shares of the budget, 1 is never."""

    start: str = word("threshold", "plain")  # a threshold code, or random weights
    train: str = ""  # streams that learn, separated by commas; "" is all. The others are frozen
    importance_from: float = number(0.0, 0, 1)
    encoder_from: float = number(1.0, 0, 1)
    encoder_lr: float = number(0.1, 0, 10)  # share of `lr`, of encoder and importance map or gains
    prior_from: float = number(0.0, 0, 1)  # scalar
    rounding_from: float = number(0.85, 0, 1)  # scalar: from here rounding is real, encoders and gains stay
    uniform_share: float = number(0.0, 0, 1)  # of the samples that are trained with one level everywhere


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Settings):
    """Budget, data and optimiser."""

    steps: int = number(2000, 0, 1e9)  # 0: until `minutes` are over
    minutes: float = number(0.0, 0, 1e5)  # 0: no limit; else the learning rate falls with the clock
    batch: int = number(16, 1, 65536)  # patches a step, of all processes together
    patch_px: int = number(128, STRIDE, 4096)  # a multiple of 8
    lr: float = number(1e-3, 0, 1e9)  # Adam's, after warm-up; a cosine takes it to a hundredth
    context_lr: float = number(5e-3, 0, 1e9)  # of the context models, which only estimate rates
    warmup: float = number(0.03, 0, 0.9)  # share of the budget
    clip: float = number(1.0, 1e-9, 1e9)  # largest norm of the codec's gradient, and of the context models'
    ema: float = number(0.998, 0, 0.99999)  # decay of the averaged weights, which are what is released
    precision: str = word("32", "bf16")  # "bf16": autocast with float32 master weights
    cuda: str = word("eager", "compile", "graph")  # how a GPU runs a step; "graph" captures it once
    context_every: int = number(4, 1, 1000)  # steps between two of the context models
    seed: int = number(0, 0, 2**31)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.steps and not self.minutes:
            raise UsageError("steps and minutes are both 0: give one of them")
        if self.patch_px % STRIDE:
            raise UsageError(f"patch_px is {self.patch_px}: expected a multiple of {STRIDE}")


@dataclass(frozen=True, kw_only=True)
class Recipe(Settings):
    """Everything that decides a run but the photographs."""

    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    stage: StageConfig = field(default_factory=StageConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.trained_streams()

    def trained_streams(self) -> tuple[str, ...]:
        """Return the keys of the streams that learn, in coding order."""
        names = [name.strip() for name in self.stage.train.split(",") if name.strip()]
        for name in names:
            choose("stream", name, self.model.streams)
        return tuple(key for key in self.model.streams if not names or key in names)


def dotted(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted name."""
    values: dict[str, Any] = {}
    for name, value in tables.items():
        values |= dotted(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return values


def profile_folder() -> Path:
    """Return the folder of the training profiles."""
    return Path(str(files("mcml.model"))) / "profiles"


def training_profiles() -> list[str]:
    """Return the names of the training profiles."""
    return sorted(path.stem for path in profile_folder().glob("*.toml"))


def load_recipe(
    profile: str, variant: str, settings: Sequence[str] = (), *, quantizer: str = "binary"
) -> Recipe:
    """Read a profile for a variant, with settings given as "table.name=value" on top.

    A profile's table `scalar` holds what is otherwise for that quantizer.
    """
    path = profile_folder() / f"{choose('training profile', profile, training_profiles())}.toml"
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"training profile {path.name} is not valid TOML: {error}") from error
    others = {name: dotted(tables.pop(name, {})) for name in QUANTIZERS}
    streams = {
        f"model.{key}.quantizer": choose("quantizer", quantizer, QUANTIZERS) for key in ("luma", "color")
    }
    chosen = dotted(tables) | streams | others[quantizer] | {"model.variant": variant}
    return Recipe().changed(**chosen | dict(map(_parse, settings)))


def _parse(text: str) -> tuple[str, Any]:
    """Read "table.name=value"; a value that is no TOML is a word."""
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals or "." not in name:
        raise UsageError(f"--set {text}: expected table.name=value, as in train.steps=500")
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, value
