"""Write ``golden/classical.json``: bytes and PSNR of each classical codec at one quality.

Run ``python tests/golden_classical.py`` when an encoder setting or a locked encoder library
changes on purpose; a change without such a reason is what the golden test is there to show.
"""

import json
from pathlib import Path

import numpy as np
from skimage import data
from skimage.metrics import peak_signal_noise_ratio

from mcml.codec.classical import CODECS

TABLE = Path(__file__).parent / "golden" / "classical.json"
QUALITIES = {
    "jpeg420": 20, "jpeg444": 20, "jpeg2000": 48, "webp": 30, "avif420": 45, "avif444": 45, "jpegxl": 50,
}  # fmt: skip


def picture() -> np.ndarray:
    """Return a 128 x 128 crop of the astronaut: face, flag and dark ground."""
    return np.ascontiguousarray(data.astronaut()[60:188, 150:278])


def measure(name: str) -> dict[str, float]:
    """Return the row of one codec: its quality, the file's bytes and the decode's PSNR in dB."""
    image = picture()
    file = CODECS[name].encode(image, QUALITIES[name])
    psnr = peak_signal_noise_ratio(image, CODECS[name].decode(file))
    return {"quality": QUALITIES[name], "bytes": len(file), "psnr": round(psnr, 3)}


def main() -> None:
    """Write the golden table."""
    TABLE.parent.mkdir(exist_ok=True)
    rows = [f'  "{name}": {json.dumps(measure(name))}' for name in CODECS]
    TABLE.write_text("{\n" + ",\n".join(rows) + "\n}\n")
    print(TABLE.read_text(), end="")


if __name__ == "__main__":
    main()
