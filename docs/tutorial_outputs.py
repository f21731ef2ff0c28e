"""Runs the tutorial's notebook in a folder of its own and keeps what it shows (`make tutorial`); the site shows that."""

from __future__ import annotations

import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).with_name("tutorial.ipynb")
SECONDS_A_CELL = 1800  # on a machine that is busy with other things


def execute(folder: Path, seconds: int = SECONDS_A_CELL) -> nbformat.NotebookNode:
    """The notebook with its outputs, run in `folder`; CellExecutionError where a cell fails."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(
        notebook,
        timeout=seconds,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
    ).execute()
    return notebook


def main() -> None:
    """Run it, and write it back."""
    with tempfile.TemporaryDirectory() as folder:
        notebook = execute(Path(folder))
    notebook.metadata.pop("language_info", None)
    for cell in notebook.cells:
        # What was said on standard error is of this machine.
        cell["outputs"] = [one for one in cell.get("outputs", []) if one.get("name") != "stderr"]
        if cell["cell_type"] != "code":
            cell.pop("outputs")
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()
