"""Write ``golden/``'s files of the released models: metrics, a small file each and its decode.

Run ``python tests/golden_learned.py`` when weights are released anew or a model's configuration, which its
identity hashes, names other settings; never for another reason. ``former.mcml`` is the former release's
``fusion.mcml``, written before stems, strides and masks left the configuration: it must be refused.
"""

import json
from pathlib import Path

from golden_classical import picture

from mcml.codec.interface import get_codec
from mcml.data.images import write_png
from mcml.data.sets import image_set
from mcml.metrics.distortion import compare
from mcml.model.model_files import released

FOLDER = Path(__file__).parent / "golden"
TABLE = FOLDER / "learned.json"
QUALITY = 30.0
CROP = 256


def measure(name: str, image: str) -> dict[str, float | str]:
    """Return a model's row for the upper left 256 x 256 of an embedded photograph."""
    pixels = image_set("embedded").read(image)[:CROP, :CROP]
    file = get_codec(name).encode(pixels, QUALITY)
    row = compare(pixels, get_codec(name).decode(file))
    return {
        "codec": name,
        "image": image,
        "bytes": len(file),
        "psnr": round(row.psnr, 3),
        "ms_ssim": round(row.ms_ssim, 5),
        "ciede2000": round(row.ciede2000, 3),
    }


def table() -> list[dict]:
    """Return the golden rows."""
    return json.loads(TABLE.read_text())


def main() -> None:
    """Write everything."""
    names = [path.stem for path in image_set("embedded").paths]
    rows = [json.dumps(measure(model, image)) for model in released() for image in names]
    TABLE.write_text("[\n  " + ",\n  ".join(rows) + "\n]\n")
    for model in released():
        file = get_codec(model).encode(picture(), QUALITY)
        (FOLDER / f"{model}.mcml").write_bytes(file)
        write_png(FOLDER / f"{model}.png", get_codec(model).decode(file))
    print(TABLE.read_text(), end="")


if __name__ == "__main__":
    main()
