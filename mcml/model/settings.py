"""What a variant is made of: settings of the streams and of the model, with their checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from mcml.base import STRIDE
from mcml.base.errors import UsageError, choose

VARIANTS = {
    "luma": "Y alone",
    "independent": "Y, Cb and Cr, each on its own",
    "fusion": "Y, Cb and Cr, the colour decoders borrowing luma: the poster",
    "rgb": "one network on R, G and B together, with the same compression module: [7]'s idea",
}
STREAMS = {
    "luma": ("Y",),
    "independent": ("Y", "Cb", "Cr"),
    "fusion": ("Y", "Cb", "Cr"),
    "rgb": ("RGB",),
}
IMPORTANCE = ("adaptive", "uniform", "none")


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """One stream's networks and compression module."""

    width: int = 96  # channels of the trunks
    code_channels: int = 256  # n, bits a position at most
    levels: int = 32  # L of the importance map; its L - 1 groups share the n bits
    groups: int = 5  # groups of residual blocks, each with a skip
    blocks: int = 3  # residual blocks a group
    stem: str = "patch"  # or "strided", Li et al.'s two convolutions
    trunk_stride: int = STRIDE  # pixels; 4 makes the trunks four times as costly
    importance: str = "adaptive"  # "uniform": the dial's level everywhere; "none": all bits, no map
    keep_first: bool = False  # True: Q + 1 groups open, as in Li et al.'s released model

    def __post_init__(self) -> None:
        _check_types(self)
        choose("stem", self.stem, ("patch", "strided"))
        choose("importance", self.importance, IMPORTANCE)
        for name, low, high in [
            ("width", 1, 1024), ("code_channels", 1, 1024), ("levels", 2, 256), ("groups", 1, 32),
            ("blocks", 1, 32),
        ]:  # fmt: skip
            if not low <= getattr(self, name) <= high:
                raise UsageError(f"{name} is {getattr(self, name)}: expected {low} to {high}")
        if self.trunk_stride not in (4, STRIDE):
            raise UsageError(f"trunk_stride is {self.trunk_stride}: expected 4 or {STRIDE}")
        if self.code_channels < self.group_count:
            raise UsageError(
                f"code_channels is {self.code_channels}: {self.levels} levels need {self.group_count} or more"
            )

    @property
    def group_count(self) -> int:
        """Return how many groups of bits the levels open."""
        return self.levels - (0 if self.keep_first else 1)

    def even_groups(self) -> list[int]:
        """Return group sizes as equal as they can be; the larger ones come last."""
        count = self.group_count
        return [(self.code_channels + i) // count for i in range(count)]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A variant and its streams."""

    variant: str = "fusion"
    luma: StreamConfig = field(default_factory=StreamConfig)  # also the rgb variant's one stream
    color: StreamConfig = field(default_factory=lambda: StreamConfig(width=64, code_channels=64, levels=16))
    fuse: str = "codes"  # or "features": what of luma the fusion network gets
    dial_low: float = -3.0  # the span of the dial b that the networks are trained for
    dial_high: float = 3.0

    def __post_init__(self) -> None:
        _check_types(self)
        choose("variant", self.variant, VARIANTS)
        choose("fusion input", self.fuse, ("codes", "features"))
        if self.luma.trunk_stride != STRIDE and self.variant == "fusion" and self.fuse == "features":
            raise UsageError("fuse='features' needs luma trunks at stride 8")
        if not -20 <= self.dial_low < self.dial_high <= 20:
            raise UsageError(
                f"dial from {self.dial_low} to {self.dial_high}: expected -20 <= low < high <= 20"
            )

    @property
    def streams(self) -> tuple[str, ...]:
        """Return the stream keys in coding order."""
        return STREAMS[self.variant]

    def stream(self, key: str) -> StreamConfig:
        """Return a stream's configuration."""
        return self.color if key in ("Cb", "Cr") else self.luma

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a file; `from_dict` inverts it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Build from nested plain values; unknown keys raise `UsageError` naming the nearest."""
        return _build(cls, values, "model")


def _build(kind: type, values: Mapping[str, Any], where: str) -> Any:
    known = {f.name: f for f in fields(kind)}
    given = {}
    for name, value in values.items():
        choose(f"{where} setting", name, known)
        if isinstance(value, Mapping):
            value = _build(StreamConfig, value, f"{where}.{name}")
        given[name] = value
    return kind(**given)


def _check_types(config: Any) -> None:
    for f in fields(config):
        value = getattr(config, f.name)
        expected = {"int": int, "float": (int, float), "str": str, "bool": bool, "StreamConfig": StreamConfig}
        kind = expected[str(f.type)]
        if not isinstance(value, kind) or (isinstance(value, bool) and f.type != "bool"):
            raise UsageError(f"{f.name} is {value!r}: expected {f.type}")
