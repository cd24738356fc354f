"""Write ``golden/``'s files of the released models: metrics, a small file each and its decode.

Run ``python tests/golden_learned.py`` when weights are released anew, never for another reason.
"""

import json
from pathlib import Path

from golden_classical import picture

from mcml.codec import interface as codec
from mcml.data import images
from mcml.data import sets as data
from mcml.metrics import distortion as metrics
from mcml.model import model_files

FOLDER = Path(__file__).parent / "golden"
TABLE = FOLDER / "learned.json"
QUALITY = 30.0
CROP = 256


def measure(name: str, image: str) -> dict[str, float | str]:
    """Return a model's row for the upper left 256 x 256 of an embedded photograph."""
    pixels = data.image_set("embedded").read(image)[:CROP, :CROP]
    file = codec.get_codec(name).encode(pixels, QUALITY)
    row = metrics.compare(pixels, codec.get_codec(name).decode(file))
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
    names = [path.stem for path in data.image_set("embedded").paths]
    rows = [json.dumps(measure(model, image)) for model in model_files.released() for image in names]
    TABLE.write_text("[\n  " + ",\n  ".join(rows) + "\n]\n")
    for model in model_files.released():
        file = codec.get_codec(model).encode(picture(), QUALITY)
        (FOLDER / f"{model}.mcml").write_bytes(file)
        images.write_png(FOLDER / f"{model}.png", codec.get_codec(model).decode(file))
    print(TABLE.read_text(), end="")


if __name__ == "__main__":
    main()
