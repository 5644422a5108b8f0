"""Notebooks are run from top to bottom, and what came out is kept without traces of the machine."""

import base64
import hashlib
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fl_sim.errors import FlSimError

PARAMETERS = "parameters"
"""Tag of the cell whose values a caller may replace, as papermill has it."""
MARK = "fl_sim"
"""Key of a notebook's metadata that says which code its outputs belong to."""

_SECONDS = 1200
_KERNEL = "python3"
_PNG = "image/png"
_IN_PAGE = re.compile(r"(?<=data:image/png;base64,)[A-Za-z0-9+/=]+")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def read(path: Path) -> Any:
    """Return a notebook as nbformat has it.

    Raises:
        FlSimError: if the file is none.
    """
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except (OSError, ValueError) as error:
        raise FlSimError(f"{path.name} is no notebook that can be read: {error}") from error


def execute(notebook: Any, folder: Path, parameters: Mapping[str, Any] | None = None) -> Any:
    """Return a copy of a notebook, run from top to bottom by a kernel of its own.

    Args:
        notebook: as :func:`read` returns it; its outputs are forgotten.
        folder: that the kernel works in.
        parameters: values by name that go before those of the cell tagged ``PARAMETERS``.

    Raises:
        FlSimError: naming the notebook's cell that failed, and its error; or a parameter that
            the cell does not set; or if the kernel ended by itself.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    running = nbformat.from_dict(json.loads(json.dumps(notebook)))
    for cell in _code(running):
        cell.outputs, cell.execution_count = [], None
    if parameters:
        put(running, parameters)
    client = NotebookClient(
        running,
        timeout=_SECONDS,
        kernel_name=_KERNEL,
        resources={"metadata": {"path": str(folder)}},
        store_widget_state=False,
        record_timing=False,
        startup_timeout=_SECONDS,  # busy machines take their time
    )
    try:
        client.execute()
    except CellExecutionError as error:
        said = f"{error.ename}: {_COLOURS.sub('', error.evalue)}"
        raise FlSimError(f"A cell of the notebook fails with {said}") from error
    except DeadKernelError as error:
        raise FlSimError(
            "The notebook's kernel ended by itself; see whether memory has run out."
        ) from error
    return running


def tidied(notebook: Any) -> Any:
    """Return an executed notebook as it is committed.

    Without execution's metadata, progress bars that are done, what went to stderr, and the version
    of Python; pictures in 256 colours, a third as large; with the digest of the sources that the
    outputs belong to.
    """
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        tags = cell.metadata.get("tags")
        cell.metadata = {"tags": tags} if tags else {}
    for number, cell in enumerate(_code(notebook)):
        cell.execution_count = number + 1
        said = [_plain(one, number + 1) for one in cell.outputs if _says(one)]
        cell.outputs = _joined(said)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": _KERNEL},
        "language_info": {"name": "python"},
        MARK: {"sources": digest(notebook)},
    }
    return notebook


def digest(notebook: Any) -> str:
    """Return the SHA-256 of the sources of all cells of code, in order."""
    sources = [cell.source for cell in _code(notebook)]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()


def _code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def put(notebook: Any, parameters: Mapping[str, Any]) -> None:
    """Append values to the cell of parameters, so that they go before its own.

    Raises:
        FlSimError: if the cell does not set one of them.
    """
    cell = next(c for c in _code(notebook) if PARAMETERS in c.metadata.get("tags", ()))
    for name, value in parameters.items():
        if not re.search(rf"\b{re.escape(name)}\b.*=", cell.source):
            raise FlSimError(f"The notebook's cell of parameters does not set '{name}'.")
        cell.source += f"\n{name} = {value!r}"


def _says(output: Any) -> bool:
    """Whether an output is kept: not what goes to stderr, nor bars that are gone."""
    if output.output_type == "stream":
        return bool(output.name == "stdout")
    return any(bool(value) for value in output.get("data", {}).values())


def _joined(outputs: list[Any]) -> list[Any]:
    """Return outputs with prints that follow each other in one."""
    found: list[Any] = []
    for one in outputs:
        if found and one.output_type == found[-1].output_type == "stream":
            found[-1].text += one.text
        else:
            found.append(one)
    return found


def _plain(output: Any, count: int) -> Any:
    if "metadata" in output:
        output.metadata = {}
    if output.output_type == "execute_result":
        output.execution_count = count
    data = output.get("data", {})
    if _PNG in data:
        data[_PNG] = _smaller(data[_PNG])
    if "text/html" in data:
        data["text/html"] = _IN_PAGE.sub(lambda found: _smaller(found[0]), data["text/html"])
    return output


def _smaller(picture: str) -> str:
    """Return a PNG in base64 in 256 colours."""
    from PIL import Image

    written = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        few = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        few.save(written, "PNG", optimize=True)
    return base64.b64encode(written.getvalue()).decode()
