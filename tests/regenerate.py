"""Make the committed results anew: notebooks' outputs, golden files, the README's figure.

Run by `make refresh` after a change that is meant to alter them, and read the diff: a
notebook's text must say what its new figures show.
"""

import io
import os
import sys
import tempfile
from pathlib import Path

import golden_files
import jupytext
import nbformat
from nbclient import NotebookClient

from mcml.codec.interface import encode_at_bpp, get_codec
from mcml.data.sets import image_set
from mcml.lab import figures
from mcml.metrics.artifacts import artifact_maps, worst_boxes
from mcml.metrics.color import rgb_to_lab
from mcml.metrics.distortion import ciede2000_map

ROOT = Path(__file__).resolve().parent.parent
SHOWN = ("jpeg420", "jpeg2000", "webp", "avif444_speed6", "fusion", "scalar_fusion")  # in the README's figure


def execute(path: Path) -> None:
    """Run a notebook with its defaults from its own folder and store outputs, without times."""
    notebook = nbformat.read(path, as_version=4)
    quiet = ["--IPKernelApp.log_level=40"]
    place = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(
        notebook, kernel_name="python3", resources=place, extra_arguments=quiet, record_timing=False
    )
    client.execute()
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.write(notebook, path)


def write_text(path: Path) -> None:
    """Write a notebook's code and prose beside it, for reading its changes as a diff."""
    config = jupytext.config.load_jupytext_configuration_file(str(ROOT / "pyproject.toml"))
    notebook = jupytext.read(path, config=config)
    jupytext.write(notebook, path.parent / "text" / f"{path.stem}.py", fmt="py:percent", config=config)


def draw_artefacts() -> bytes:
    """Return the README's figure as PNG: the worst square of each artefact, enlarged three times."""
    original, decodes = image_set("embedded").read("china"), {}
    for codec in map(get_codec, SHOWN):
        decode = codec.decode(encode_at_bpp(codec, original, 0.16).data)
        error = ciede2000_map(rgb_to_lab(original), rgb_to_lab(decode)).mean()
        decodes[f"{codec.name}\nCIEDE2000 {error:.1f}"] = decode
    maps = [artifact_maps(original, decode) for decode in decodes.values()]
    boxes = worst_boxes({kind: sum(m[kind] for m in maps) for kind in maps[0]}, 56)
    with figures.plt.rc_context():
        figures.use_style()
        figure = figures.zooms(original, decodes, boxes, width=15.75)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    figures.plt.close(figure)
    return buffer.getvalue()


def main() -> None:
    """Regenerate everything, or the notebooks whose names start with an argument; --text: their text."""
    if sys.argv[1:] == ["--text"]:
        for path in (ROOT / "notebooks").glob("*.ipynb"):
            write_text(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MCML_RESULTS"] = folder
        os.environ.pop("MCML_DATA", None)
        for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]*_*.ipynb")):
            if not sys.argv[1:] or path.name.startswith(tuple(sys.argv[1:])):
                print(f"executing {path.name}", flush=True)
                execute(path)
                write_text(path)
    if not sys.argv[1:]:
        (ROOT / "docs" / "figures" / "artefacts.png").write_bytes(draw_artefacts())
        golden_files.main()


if __name__ == "__main__":
    main()
