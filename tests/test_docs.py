"""The documents: links lead to files, generated pages are current, code in them is valid, notebooks were executed."""

import ast
import json
import re
import runpy
from pathlib import Path

import pytest
import yaml

from fastwi.config.read import read_sweep_request

TOP = Path(__file__).parents[1]
PAGES = [
    path
    for pattern in ("*.md", "docs/**/*.md", "examples/*.md", "benchmarks/*.md")
    for path in sorted(TOP.glob(pattern))
    if "_build" not in path.parts
]
NAMES = [str(page.relative_to(TOP)) for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_link_leads_to_a_file(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_code_is_valid(page: Path) -> None:
    for language, code in re.findall(
        r"^```(python|yaml)\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE
    ):
        assert (ast.parse(code) if language == "python" else yaml.safe_load(code)) is not None


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_configuration_files_are_read_where_they_are_copied_to(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block that begins with `# NAME.yaml` is a file. It works in a new directory, with the page's `# NAME.py`."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(
        r"^```(?:python|yaml)\n(# (\w+\.(?:py|yaml)).*?)^```", page.read_text(), re.DOTALL | re.MULTILINE
    )
    for text, name in blocks:
        Path(name).write_text(text)
    for path in sorted(tmp_path.glob("*.yaml")):
        read_sweep_request(["--config", path.name])


def test_the_readme_is_short() -> None:
    assert len((TOP / "README.md").read_bytes()) <= 9_000


def test_generated_pages_are_current() -> None:
    pages = runpy.run_path(str(TOP / "docs" / "generated.py"))["pages"]()
    stale = [name for name, text in pages.items() if (TOP / "docs" / "reference" / name).read_text() != text]
    assert stale == [], "python docs/generated.py writes them"


@pytest.mark.parametrize("notebook", sorted(TOP.glob("examples/*.ipynb")), ids=lambda path: path.name)
def test_notebooks_are_executed_in_order_and_without_errors(notebook: Path) -> None:
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert "error" not in {output["output_type"] for output in outputs}
    assert re.search(r"/(home|root|tmp|Users)/", notebook.read_text()) is None
