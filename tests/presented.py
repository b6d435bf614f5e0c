"""What tests of studies' presentations share."""

from pathlib import Path

from PIL import Image

from fastwi.report.summary import Table


def check_figure(path: Path, narrowest: int = 500) -> None:
    """A PNG of some size and with something on it, a PDF, an SVG, and nothing else."""
    assert {each.name for each in path.parent.iterdir()} == {f"{path.stem}.{kind}" for kind in ("png", "pdf", "svg")}
    with Image.open(path) as image:
        assert image.width >= narrowest
        assert len(image.convert("RGB").getcolors(2**24)) > 50
    assert path.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    assert "</svg>" in path.with_suffix(".svg").read_text()


def column(table: Table, name: str) -> list[str]:
    """One column's cells."""
    return [row[table.columns.index(name)] for row in table.rows]
