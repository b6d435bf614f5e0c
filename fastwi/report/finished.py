"""What a finished sweep left in its directory, read for the page: specification, gains, studies; and its claims."""

import json
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import polars

from fastwi.config.read import sweep_from_yaml
from fastwi.config.sweep import AnalysisOptions, SweepSpec, count_points
from fastwi.config.write import decided_otherwise, deciding
from fastwi.engine.precision import DTYPES, noted_precision
from fastwi.errors import ConfigError, UserError
from fastwi.models.changes import NETWORKS
from fastwi.report.claims import Claim, judge
from fastwi.report.study import DECIDING, INPUTS, Frames, Study, shown_once
from fastwi.report.summary import Table
from fastwi.report.tables import sweep_tables
from fastwi.sealed import MANIFEST, is_sealed, open_directory, yaml_damage

_AGAIN = "run the sweep again"
_PRECISIONS = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class StudyRun:
    """A study that was run: its frames by name, these `shown_once`, and its tables; `options` as in its manifest."""

    directory: Path
    frames: Frames
    shown: Frames
    tables: list[Table]
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Finished:
    """A sweep's results. `yaml` is its sweep.yaml; `claims` are the paper's, judged on them.

    `shares_name`: another sweep that is shown has its name.
    """

    directory: Path
    spec: SweepSpec
    yaml: str
    manifest: Mapping[str, Any]
    gains: polars.DataFrame
    tables: list[Table]
    studies: Mapping[str, StudyRun]
    claims: list[Claim]
    shares_name: bool = False

    @property
    def title(self) -> str:
        """The name, with the directory where another sweep has it too."""
        return f"{self.name} ({self.directory})" if self.shares_name else self.name

    @property
    def name(self) -> str:
        """The sweep's, or its directory's."""
        return self.spec.options.name or self.directory.resolve().name

    @property
    def parents(self) -> int:
        """How many parents are measured."""
        return self.gains["parent_seed"].n_unique()

    @property
    def averages(self) -> int:
        """How many averages the sweep has, measured or not."""
        return count_points(self.spec)

    @property
    def command(self) -> str:
        """The command that makes the sweep's results again (and finds all of them in the store)."""
        return f"python -m fastwi.sweep {self._config}"

    @property
    def _config(self) -> str:
        """The flag that gives a command this sweep, from where the sweep was started if its directory says that."""
        begun = Path(self.spec.options.directory, self.name)
        kept = not begun.is_absolute() and self.directory.resolve().parts[-len(begun.parts) :] == begun.parts
        return f"--config {shlex.quote(str((begun if kept else self.directory) / 'sweep.yaml'))}"

    def study_command(self, name: str) -> str:
        """The command that runs the study `name`, with the options that it was run with."""
        words = [f"python -m fastwi.analyze {name} {self._config}"]
        options = self.studies[name].options if name in self.studies else {}
        for each in fields(AnalysisOptions):
            value = options.get(each.name)
            value = tuple(value) if isinstance(value, list) else value
            if value is not None and value != each.default:
                text = json.dumps(value) if isinstance(value, tuple) else str(value)
                # Joined by =: a number below 0 would read as the next flag.
                words.append(f"--analysis.{each.name}={shlex.quote(text)}")
        return " ".join(words)


def find_sweeps(targets: Iterable[Path], studies: Mapping[str, Study]) -> list[Finished]:
    """The sweeps of `targets`, results directories or stores, each once. Raises UserError where one is damaged."""
    found: dict[Path, Path] = {}
    for target in targets:
        for directory in _directories(target):
            found.setdefault(directory.resolve(), directory)
    sweeps = [_read(directory, studies) for directory in found.values()]
    names = Counter(sweep.name for sweep in sweeps)
    return [replace(sweep, shares_name=names[sweep.name] > 1) for sweep in sweeps]


def _directories(target: Path) -> list[Path]:
    if not target.is_dir():
        raise UserError(f"{target}: no such directory; give a sweep's results directory, or a store")
    if (target / "gains.parquet").exists():
        return [target]
    directories = []
    for path in sorted((target / "sweeps").glob("*.yaml")):
        spec = _spec(path)[0]
        options = spec.options
        directory = Path(options.directory) / (options.name or path.stem)
        if not (directory / "gains.parquet").exists():
            raise UserError(
                f"{path}: its results are not at {directory}; start where the sweep did, or give its directory"
            )
        auto = _precision(open_directory(directory, _AGAIN))
        now = _resolved(deciding(_spec(directory / "sweep.yaml")[0]), auto)
        then = _resolved(deciding(spec), noted_precision(target) or auto)
        other = decided_otherwise(now, then) or decided_otherwise(then, now)
        if other:
            raise UserError(
                f"{path}: {directory} has results of another {other} by now; {_AGAIN}, or give that directory"
            )
        directories.append(directory)
    if not directories:
        raise UserError(f"{target}: has no gains.parquet and no sweeps/*.yaml; run python -m fastwi.sweep first")
    return directories


def _read(directory: Path, studies: Mapping[str, Study]) -> Finished:
    about = open_directory(directory, _AGAIN)
    spec, yaml = _spec(directory / "sweep.yaml")
    runs = {}
    for name, study in studies.items():
        home = directory / "analyses" / name
        if (home / MANIFEST).exists():  # it is written last: without one, what is there may be half of it
            runs[name] = _read_study(home, study, spec, about)
    path = directory / "gains.parquet"
    with _of_this_version(path, _AGAIN):
        gains = _parquet(path)
        claims = judge(gains, {name: run.shown for name, run in runs.items()})
        return Finished(directory, spec, yaml, about, gains, sweep_tables(gains), runs, claims)


def _read_study(home: Path, study: Study, spec: SweepSpec, sweep: Mapping[str, Any]) -> StudyRun:
    """`spec`, `sweep`: the sweep whose results are there, and its manifest. An earlier one may have had its name."""
    again = f"run python -m fastwi.analyze {home.name} again"
    about = open_directory(home, again)
    if NETWORKS in about and about[NETWORKS] != sweep.get(NETWORKS):
        raise UserError(f"{home}: is of another source of the network than the sweep's results; {again}")
    if "dataset" in about and "data.path" not in spec.axes and _pixels(about) != _pixels(sweep):
        raise UserError(f"{home}: is of another dataset than the sweep's results; {again}")
    other = ""
    if DECIDING in about:
        then, now = _resolved(about[DECIDING], _precision(about)), _resolved(deciding(spec), _precision(sweep))
        other = decided_otherwise(then, now)
    if not other and INPUTS in sweep and not set(about.get(INPUTS, ())) <= set(sweep[INPUTS]):
        other = "dataset, start (model.weights), source of a network or engine.precision: auto"
    if other:
        raise UserError(f"{home}: is of another {other} than the sweep's results; {again}")
    with _of_this_version(home, again):
        names = {path.stem for path in home.glob("*.parquet")} | set(about.get("rows", ()))
        frames = study.renew({name: _parquet(home / f"{name}.parquet") for name in sorted(names)})
        shown, _ = shown_once(frames)
        return StudyRun(home, frames, shown, study.tables(shown), about.get("options", {}))


def _precision(about: Mapping[str, Any]) -> str:
    """The precision that a manifest has, as engine.precision names it; of several the first."""
    return _PRECISIONS.get(about.get("precision", ""), "auto")


def _resolved(decided: Mapping[str, list[str]], precision: str) -> dict[str, list[str]]:
    """`decided` (of `deciding`) with what engine.precision: auto was, another one on other machines.

    Among several of an axis it stays auto: `INPUTS` says what that was.
    """
    given = decided.get("engine.precision", [])
    return {**decided, "engine.precision": [f'"{precision}"']} if given in ([], ['"auto"']) else dict(decided)


def _pixels(about: Mapping[str, Any]) -> Any:
    """The checksums of a manifest's dataset, where it has one."""
    return (about.get("dataset") or {}).get("sha256")


def _spec(path: Path) -> tuple[SweepSpec, str]:
    """A sweep.yaml, and its text."""
    with _of_this_version(path, _AGAIN):
        text = path.read_text(encoding="utf-8")
        problem = yaml_damage(text) if is_sealed(text) else "no checksum"
        if problem:
            raise ConfigError(problem)
        return sweep_from_yaml(text, str(path), path.parent), text


def _parquet(path: Path) -> polars.DataFrame:
    with open(path, "rb") as stream:  # polars takes brackets and stars in a path for a pattern
        return polars.read_parquet(stream)


@contextmanager
def _of_this_version(path: Path, again: str) -> Iterator[None]:
    """Raise UserError, in one line, where the block cannot read what is at `path`."""
    kinds = (OSError, ValueError, KeyError, ConfigError, polars.exceptions.PolarsError)
    try:
        yield
    except (*kinds, polars.exceptions.PanicException) as error:
        said = " ".join(str(error).replace(f"{path}: ", "").split())[:120]
        raise UserError(f"{path}: damaged, or not of this version ({said}); {again}") from error
