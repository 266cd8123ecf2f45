"""Figures as files, and as a part of a page."""

import base64
import io
from collections.abc import Iterable
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from nfcl_jax.report.figures import STYLE
from nfcl_jax.storage import write_file


def figure_bytes(figure: Figure, kind: str) -> bytes:
    """The figure as a "png" or "svg" file; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format=kind, dpi=160, facecolor="white", metadata=metadata)
    return buffer.getvalue()


def write_figures(
    folder: Path, names: Iterable[str], drawn: Iterable[tuple[str, str, Figure]]
) -> list[dict[str, str]]:
    """Writes figures as PNG and SVG in the place of an earlier report's, which match `names`.

    Args:
      folder: for them.
      names: patterns without endings.
      drawn: name, caption and figure.

    Returns:
      For each its caption, and a URL that holds it.
    """
    folder.mkdir(exist_ok=True)
    for path in [p for kind in ("png", "svg") for n in names for p in folder.glob(f"{n}.{kind}")]:
        path.unlink()
    pictures = []
    for name, caption, figure in drawn:
        files = {"png": figure_bytes(figure, "png")}
        figure.set_layout_engine("none")  # it is laid out
        files["svg"] = figure_bytes(figure, "svg")
        for kind, contents in files.items():
            write_file(folder / f"{name}.{kind}", contents)
        # Pictures of scans are smaller as PNG.
        kind = "png" if name.startswith(("reconstructions", "pictures")) else "svg"
        pictures.append({"caption": caption, "url": data_url(files[kind], kind)})
    return pictures


def data_url(contents: bytes, kind: str) -> str:
    """A picture as an address that holds it; `kind` is "png" or "svg"."""
    mime = {"png": "image/png", "svg": "image/svg+xml"}[kind]
    return f"data:{mime};base64,{base64.b64encode(contents).decode()}"
