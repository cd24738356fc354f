"""Write ``golden/``: the bytes and quality of each codec's files, and the released models' own.

Run ``python tests/golden_files.py`` when an encoder setting, a locked encoder library, released weights or a
model's configuration, which its identity hashes, changes on purpose; never for another reason: to show such a
change is what the golden tests are there for. ``former.mcml`` is the former release's ``fusion.mcml``,
written before stems, strides and masks left the configuration: it must be refused.
"""

import json
from pathlib import Path

import numpy as np
from skimage.metrics import peak_signal_noise_ratio

from mcml.codec.classical import CODECS
from mcml.codec.interface import get_codec
from mcml.data.images import write_png
from mcml.data.sets import image_set
from mcml.metrics.distortion import compare
from mcml.model.model_files import writers

FOLDER = Path(__file__).parent / "golden"
QUALITY = 30.0  # of the released models
QUALITIES = {
    "jpeg420": 20, "jpeg444": 20, "jpeg2000": 48, "webp": 30, "avif420": 45, "avif444": 45,
    "avif420_speed6": 45, "avif444_speed6": 45, "jpegxl": 50,
}  # fmt: skip


def picture() -> np.ndarray:
    """Return a 128 x 128 crop of the astronaut: face, flag and dark ground."""
    return image_set("embedded").read("astronaut")[60:188, 150:278].copy()


def measure_classical(name: str) -> dict[str, float]:
    """Return the row of one codec: its quality, the file's bytes and the decode's PSNR in dB."""
    image, codec = picture(), CODECS[name]
    file = codec.encode(image, QUALITIES[name])
    psnr = peak_signal_noise_ratio(image, codec.decode(file))
    return {"quality": QUALITIES[name], "bytes": len(file), "psnr": round(psnr, 3)}


def measure_learned(name: str, image: str) -> dict[str, float | str]:
    """Return a model's row for the upper left 256 x 256 of an embedded photograph."""
    pixels, codec = image_set("embedded").read(image)[:256, :256], get_codec(name)
    file = codec.encode(pixels, QUALITY)
    row = compare(pixels, codec.decode(file))
    metrics = {
        "psnr": round(row.psnr, 3),
        "ms_ssim": round(row.ms_ssim, 5),
        "ciede2000": round(row.ciede2000, 3),
    }
    return {"codec": name, "image": image, "bytes": len(file), **metrics}


def table(name: str) -> dict | list:
    """Return the golden rows: "classical" by codec, or "learned" as a list."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def main() -> None:
    """Write everything."""
    images = [path.stem for path in image_set("embedded").paths]
    classical = [f'"{name}": {json.dumps(measure_classical(name))}' for name in CODECS]
    learned = [json.dumps(measure_learned(model, image)) for model in writers() for image in images]
    for name, (first, last), rows in (("classical", "{}", classical), ("learned", "[]", learned)):
        (FOLDER / f"{name}.json").write_text(f"{first}\n  " + ",\n  ".join(rows) + f"\n{last}\n")
    for model in writers():
        file = get_codec(model).encode(picture(), QUALITY)
        (FOLDER / f"{model}.mcml").write_bytes(file)
        write_png(FOLDER / f"{model}.png", get_codec(model).decode(file))


if __name__ == "__main__":
    main()
