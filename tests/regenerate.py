"""Make the committed results anew: notebooks' outputs, golden files, the README's figure.

Run by `make refresh` after a change that is meant to alter them, and read the diff: a
notebook's text must say what its new figures show.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
README_FIGURES = {"artefacts.png": "05_artifact_visualization/zooms.png"}  # docs/figures <- results/quick


def execute(path: Path) -> None:
    """Run a notebook with its defaults from its own folder and store outputs, without times."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        extra_arguments=["--IPKernelApp.log_level=40"],
    )
    client.execute()
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    nbformat.write(notebook, path)


def main() -> None:
    """Regenerate everything, or only the notebooks whose names start with an argument."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MCML_RESULTS"] = folder
        os.environ.pop("MCML_DATA", None)
        for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
            if not sys.argv[1:] or path.name.startswith(tuple(sys.argv[1:])):
                print(f"executing {path.name}", flush=True)
                execute(path)
        for name, source in README_FIGURES.items():
            if (Path(folder) / "quick" / source).exists():
                (ROOT / "docs" / "figures").mkdir(parents=True, exist_ok=True)
                shutil.copyfile(Path(folder) / "quick" / source, ROOT / "docs" / "figures" / name)
    if not sys.argv[1:]:
        import golden_classical
        import golden_learned

        golden_classical.main()
        golden_learned.main()


if __name__ == "__main__":
    main()
