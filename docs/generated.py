"""Pages that follow from declarations and results: keys, commands, columns, claims. `python docs/generated.py` writes them.

They are committed, so that they can be read without building the site; a test compares them with what they are made from.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from fastwi.__main__ import COMMANDS
from fastwi.analysis.columns import Columns
from fastwi.analysis.statistics import FEWEST
from fastwi.config.schema import section_keys
from fastwi.config.sweep import ALL_SECTIONS, NAMES
from fastwi.config.write import default_text, title
from fastwi.report.claims import CLAIMS, Finding
from fastwi.report.estimates import shown
from fastwi.report.finished import Finished, find_sweeps
from fastwi.report.rows import COLUMNS, GAIN_COLUMNS
from fastwi.report.summary import count_of, sentence
from fastwi.studies import all_studies

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
MODULES = {"data-prep": "data_prep"}
"""Of commands, where it is not fastwi.COMMAND."""

_CONFIG = """\
# Configuration keys

A configuration is a YAML file with a section for each heading below. `--section.key value` on the command line overrides the file, and the file overrides
the defaults. A sweep file has the same sections, `axes` (any key with a yes under "axis", with the values that it takes in turn: a list, or a range such as
`1..4` or `0..0.5 step 0.25`), `sweep`, `analysis`, and `base`: another file under this one.

Unknown keys, values of another type, values out of bounds and keys that are given twice are refused, all of a file at once, a line each.
"""
_COLUMNS = """\
# Columns of results

The Parquet files hold unit and meaning of each column in their metadata, under `fastwi.columns`. A number that JSON does not have is a string in
metrics.jsonl and in all `--json` output: `"NaN"`, `"Infinity"`, `"-Infinity"`.

## metrics.jsonl of a run

| column | meaning |
|---|---|
| `stage` | `parent`, `children`, `interpolation` or `after` |
| `epoch` | epochs since initialisation: children of a parent at k start from k, their average from k + s |
| `iteration` | training steps done since initialisation |
| `round` | round of cloning and averaging, from 1; only in a run of several (`experiment.rounds`), and not of the parent |
| `network` | `parent`, `child 1` ... `child n`, `average` |
| `over_time` | which average over time of the network (`trajectory.averages`, `optimizer.ema_decay`); only there |
| `batch_norm` | statistics used for testing: `own` (of the average: the mean of the children's), or `recomputed` on training images |
| `train_loss` | nats: mean cross-entropy of the epoch's batches, each before its step |
| `learning_rate` | at the start of the epoch |
| `test_loss`, `test_accuracy_%` | nats and %, on the test images without augmentation; NaN for a network that is not finite |
"""
_CLAIMS = f"""\
# The paper's claims, sweep by sweep

What each sweep under `results/` says about the claims of Iyer, Dziugaite and Rolnick (TMLR 2024). An estimate has its 95 % interval over parents; with
fewer than {FEWEST} parents there is none, and nothing is settled. Confirmed: the whole interval lies on the claimed side; refuted: all of it lies on the other
side. `python -m fastwi.report results/SWEEP` has every estimate that a verdict rests on, with tables and figures.
[The findings](../tutorials/findings.md) say it in words.
"""


def _table(columns: list[str], rows: list[list[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in [columns, *cells]]
    return [lines[0], "|---" * len(columns) + "|", *lines[1:], ""]


def config_page() -> str:
    """Every key of every section: default, what is allowed, whether it can be an axis, meaning."""
    lines = [_CONFIG]
    for section in ALL_SECTIONS:
        rows = []
        for key in section_keys(section, NAMES.values()):
            default = f"`{default_text(key)}`" if default_text(key) else "empty"
            type_name = "list of " * key.many + key.scalar.__name__
            values = ", ".join(filter(None, (type_name, key.allowed, key.unit)))
            axis = "yes" if f"axes.{key.path}" in NAMES else "no"
            rows.append([f"`{key.path}`", default, values, axis, key.help])
        lines += [f"## {section}", "", title(section), ""]
        lines += _table(["key", "default", "values", "axis", "meaning"], rows)
    return "\n".join(lines)


def _columns(title: str, about: str, columns: Columns) -> list[str]:
    rows = [[f"`{name}`", column.unit, column.help] for name, column in columns.items()]
    return [title, "", *([about, ""] if about else []), *_table(["column", "unit", "meaning"], rows)]


def columns_page() -> str:
    """Every column of every table."""
    lines = [_COLUMNS]
    axes = "Before these: the axes of the sweep other than k and s, by dotted name."
    lines += _columns("## results.parquet of a sweep", f"One row a measurement, in long form. {axes}", COLUMNS)
    lines += _columns("## gains.parquet of a sweep", f"One row an average. {axes} Null: not measured.", GAIN_COLUMNS)
    for name, study in all_studies().items():
        lines += [f"## analyses/{name}", "", f"{sentence(study.question)}. {axes}", ""]
        for frame, columns in study.columns.items():
            lines += _columns(f"### {frame}.parquet", "", columns)
    return "\n".join(lines)


def commands_page() -> str:
    """What each command prints for --help."""
    environment = {**os.environ, "COLUMNS": "100", "PYTHONPATH": str(HERE.parent)}
    sections = ["# Commands\n"]
    for name in COMMANDS:
        command = [sys.executable, "-m", MODULES.get(name, f"fastwi.{name}"), "--help"]
        text = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.rstrip()
        sections.append(f"## fastwi {name}\n\n```text\n{text}\n```\n")
    return "\n".join(sections)


def _made(sweep: Finished) -> list[str]:
    """A row on how a sweep was made."""
    about, spec, n = sweep.manifest, sweep.spec, sweep.gains.height
    cost = about.get("cost")
    spent = f"{cost['trained_epochs']:,} epochs, {cost['seconds'] / 3600:.1f} h" if cost else "not recorded"
    counts = ", ".join(f"{count:,}" if count else "all" for count in spec.values("data.train_images"))
    images = f", {counts} training images" if counts != "all" else ""
    machine = f"{about['device'].get('gpu', about['device']['cpu'])}, {about['precision']}"
    command = f"`python -m fastwi.sweep --config results/{sweep.directory.name}/sweep.yaml`"
    what = f"{', '.join(spec.values('model.name'))} on {about['dataset']['name']}{images}"
    return [
        sweep.directory.name,
        what,
        f"{count_of(sweep.parents, 'parent')}, {n:,} averages",
        machine,
        spent,
        command,
    ]


def _finding(found: Finding) -> list[str]:
    """What was found, as '+0.50 [+0.22, +0.78] points', of how many parents, and its verdict."""
    n = found.estimate.n_parents
    return [found.what, f"{shown(found.estimate, n)} {found.unit}", f"{n}", found.verdict_text]


def claims_page() -> str:
    """Each claim's verdict and the estimates that decide it, of every sweep under results/."""
    sweeps = find_sweeps(sorted(path.parent for path in RESULTS.glob("*/gains.parquet")), all_studies())
    names = [sweep.directory.name for sweep in sweeps]
    verdicts = [
        [f"{number}. {statement.title}", *(sweep.claims[number - 1].verdict_text for sweep in sweeps)]
        for number, statement in CLAIMS.items()
    ]
    lines = [_CLAIMS, *_table(["claim", *names], verdicts)]
    made = ["sweep", "network and data", "n", "processor, precision", "work", "again"]
    lines += ["## How they were made", "", *_table(made, list(map(_made, sweeps)))]
    for number, statement in CLAIMS.items():
        rows = [
            [sweep.directory.name, *_finding(found)]
            for sweep in sweeps
            for found in sweep.claims[number - 1].found.findings
            if found.verdict and found.estimate.conclusive
        ]
        lines += [f"## {number}. {statement.title}", "", statement.estimand, ""]
        columns = ["sweep", "what", "estimate", "parents", "verdict"]
        lines += _table(columns, rows) if rows else ["No sweep has an interval for it yet.", ""]
    return "\n".join(lines)


def pages() -> Mapping[str, str]:
    """The text of each page by its file below docs/reference."""
    made = {"config.md": config_page, "columns.md": columns_page, "commands.md": commands_page}
    return {name: page() for name, page in {**made, "claims.md": claims_page}.items()}


if __name__ == "__main__":
    for name, text in pages().items():
        (HERE / "reference" / name).write_text(text)
