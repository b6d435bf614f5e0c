"""Figures and files inside one HTML page: inline SVG with names of its own, PNG and CSV as data URIs."""

import base64
import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.etree import ElementTree

import polars

from fastwi.errors import UserError
from fastwi.files import to_json

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_HREFS = ("href", f"{{{_XLINK}}}href")
_UNWANTED = ("metadata", "script", "style", "foreignObject", "title", "desc")
_URL = re.compile(r"url\(\s*['\"]?#([^'\")]+)['\"]?\s*\)")
_PNG_SIGNATURE, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"


def data_uri(content: bytes, kind: str) -> str:
    """`content` as a data: URI of the media type `kind`."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def csv_uri(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as a CSV data: URI."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return data_uri(text.getvalue().encode(), "text/csv;charset=utf-8")


def frame_csv_uri(frame: polars.DataFrame) -> str:
    """A frame as a CSV data: URI, lists as JSON."""
    rows = ([to_json(v) if isinstance(v, list) else v for v in row] for row in frame.iter_rows())
    return csv_uri(frame.columns, rows)


def png_bytes(path: Path) -> bytes:
    """The PNG file's content. Raises UserError where it is none, or not all of one."""
    content = _bytes(path)
    if not (content.startswith(_PNG_SIGNATURE) and content.endswith(_PNG_END)):
        raise UserError(f"{path}: damaged, not a whole PNG; run the command that wrote it again")
    return content


def png_width(content: bytes) -> int:
    """Width of a PNG in pixels."""
    return int.from_bytes(content[16:20], "big")


def inline_svg(path: Path, prefix: str, label: str) -> str:
    """The SVG file as an element for an HTML page, called `label` for those who can't see it.

    Every id gets `prefix`, so that figures on one page don't take each other's shapes. Styles, scripts, event
    handlers and references out of the file are left out: matplotlib's one style rule is put on the root, where it is
    inherited. Raises UserError where the file is not SVG.
    """
    content = _bytes(path)
    if b"<!ENTITY" in content:
        raise UserError(f"{path}: not a figure of fastwi (it declares entities); run the command that wrote it again")
    try:
        root = ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        raise UserError(f"{path}: damaged, not SVG ({error}); run the command that wrote it again") from error
    if root.tag != f"{{{_SVG}}}svg":
        raise UserError(f"{path}: not SVG; run the command that wrote it again")
    _clean(root, prefix)
    root.set("role", "img")
    root.set("aria-label", label)
    root.set("style", "stroke-linejoin:round;stroke-linecap:butt")
    for name in ("width", "height"):
        if (value := root.attrib.pop(name, None)) and name == "width":
            root.set("data-width", value)
    text: str = ElementTree.tostring(root, encoding="unicode")
    # HTML knows the SVG elements without namespaces, and xlink by its usual prefix only.
    text = re.sub(r"\sxmlns:\w+=\"[^\"]*\"", "", text)
    return re.sub(r"<(/?)\w+:", r"<\1", text)


def _clean(element: ElementTree.Element, prefix: str) -> None:
    for name, value in list(element.attrib.items()):
        local = name.rpartition("}")[2]
        del element.attrib[name]
        if name in _HREFS:
            if value.startswith("#"):
                element.set("href", f"#{prefix}{value[1:]}")
            elif value.startswith("data:image/"):
                element.set("href", value)
        elif local == "id":
            element.set("id", prefix + value)
        elif not local.lower().startswith("on") and not name.startswith("{"):
            value = _URL.sub(rf"url(#{prefix}\1)", value)
            if "url(" not in _URL.sub("", value):
                element.set(local, value)
    for child in list(element):
        tag = child.tag if isinstance(child.tag, str) else ""
        if not tag.startswith(f"{{{_SVG}}}") or tag.rpartition("}")[2] in _UNWANTED:
            element.remove(child)
        else:
            _clean(child, prefix)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); run the command that wrote it again") from error
