"""What a finished sweep left in its directory, read for the page: specification, gains, figures, studies."""

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import polars

from fastwi.config.read import sweep_from_yaml
from fastwi.config.sweep import AnalysisOptions, SweepSpec
from fastwi.errors import ConfigError, UserError
from fastwi.models.changes import NETWORKS
from fastwi.report.study import Frames, Study
from fastwi.report.summary import Table
from fastwi.sealed import MANIFEST, is_sealed, open_directory, yaml_damage

_GAIN_COLUMNS = ("k", "s", "alpha", "parent_seed", "pair", "gain_best_own_points", "after_%")


@dataclass(frozen=True)
class StudyRun:
    """A study that was run: its frames by name and its tables; `options` as its manifest has them."""

    directory: Path
    frames: Frames
    tables: list[Table]
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Finished:
    """A sweep's results. `yaml` is its sweep.yaml."""

    name: str
    directory: Path
    spec: SweepSpec
    yaml: str
    gains: polars.DataFrame
    manifest: Mapping[str, Any]
    studies: Mapping[str, StudyRun]

    @property
    def command(self) -> str:
        """The command that makes the sweep's results again (and finds all of them in the store)."""
        return f"python -m fastwi.sweep --config {self._config}"

    def study_command(self, name: str) -> str:
        """The command that runs the study `name`, with the options that it was run with."""
        words = [f"python -m fastwi.analyze {name} --config {self._config}"]
        options = self.studies[name].options if name in self.studies else {}
        for each in fields(AnalysisOptions):
            given = options.get(each.name)
            given = tuple(given) if isinstance(given, list) else given
            if given is not None and given != each.default:
                text = json.dumps(list(given)) if isinstance(given, tuple) else str(given)
                # Joined by =: a number below 0 would read as the next flag.
                words.append(f"--analysis.{each.name}={shlex.quote(text)}")
        return " ".join(words)

    @property
    def _config(self) -> str:
        return shlex.quote(str(self.directory / "sweep.yaml"))


def find_sweeps(targets: Iterable[Path], studies: Mapping[str, Study]) -> list[Finished]:
    """The sweeps of `targets`, results directories or stores, each once, with those of `studies` that were run.

    Raises UserError for a target that is not there or is neither, and for files that are damaged.
    """
    found: dict[Path, Path] = {}
    for target in targets:
        for directory in _directories(target):
            found.setdefault(directory.resolve(), directory)
    return [_read(directory, studies) for directory in found.values()]


def _directories(target: Path) -> list[Path]:
    if not target.is_dir():
        raise UserError(f"{target}: no such directory; give a sweep's results directory, or a store")
    if (target / "gains.parquet").exists():
        return [target]
    if not (target / "store.json").exists() and not (target / "sweeps").is_dir():
        raise UserError(f"{target}: holds no gains.parquet and is no store; run python -m fastwi.sweep first")
    directories = []
    for path in sorted((target / "sweeps").glob("*.yaml")):
        options = _spec(path, _text(path)).options
        directory = Path(options.directory) / (options.name or path.stem)
        if not (directory / "gains.parquet").exists():
            raise UserError(
                f"{path}: its results are not at {directory}; start where the sweep did, or give its directory"
            )
        directories.append(directory)
    if not directories:
        raise UserError(f"{target}: a store that no sweep is noted in (sweeps/*.yaml); give a sweep's directory")
    return directories


def _read(directory: Path, studies: Mapping[str, Study]) -> Finished:
    about = open_directory(directory, "run the sweep again")
    yaml = _text(directory / "sweep.yaml")
    spec, gains = _spec(directory / "sweep.yaml", yaml), _parquet(directory / "gains.parquet")
    lacking = [name for name in _GAIN_COLUMNS if name not in gains.columns]
    if lacking:
        raise UserError(f"{directory / 'gains.parquet'}: lacks the column {lacking[0]}; run the sweep again")
    homes = {name: directory / "analyses" / name for name in studies}
    # A study writes its manifest last: without one, what is there may be half of it.
    found = {
        name: _read_study(home, studies[name], about) for name, home in homes.items() if (home / MANIFEST).exists()
    }
    return Finished(spec.options.name or directory.resolve().name, directory, spec, yaml, gains, about, found)


def _read_study(home: Path, study: Study, sweep: Mapping[str, Any]) -> StudyRun:
    """`sweep`: the manifest of the sweep that the study is of."""
    again = f"run python -m fastwi.analyze {home.name} again"
    about = open_directory(home, again)
    if NETWORKS in about and about[NETWORKS] != sweep.get(NETWORKS):
        raise UserError(f"{home}: is of another source of the network than the sweep's results; {again}")
    frames = {path.stem: _parquet(path) for path in sorted(home.glob("*.parquet"))}
    for name in about.get("rows", ()):
        if name not in frames:
            raise UserError(f"{home}: lacks {name}.parquet; {again}")
    try:
        renewed = study.renew(frames)
        tables = study.tables(renewed)
    except (KeyError, polars.exceptions.PolarsError) as error:  # a frame of another version lacks what they need
        raise UserError(f"{home}: not of this version ({_line(error)}); {again}") from error
    return StudyRun(home, renewed, tables, about.get("options", {}))


def _spec(path: Path, text: str) -> SweepSpec:
    try:
        problem = yaml_damage(text) if is_sealed(text) else "is damaged, or of an earlier fastwi (no checksum)"
        if problem:
            raise UserError(f"{path}: {problem}; run the sweep again")
        return sweep_from_yaml(text, str(path), path.parent)
    except ConfigError as error:
        first, *more = str(error).replace(f"{path}: ", "").splitlines()
        rest = f" (and {len(more)} more)" if more else ""
        raise UserError(f"{path}: not a sweep of this version: {first}{rest}; run the sweep again") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UserError(f"{path}: cannot be read ({said}); run the sweep again") from error


def _parquet(path: Path) -> polars.DataFrame:
    try:
        # From a stream: polars takes brackets and stars in a path for a pattern.
        with open(path, "rb") as stream:
            return polars.read_parquet(stream)
    except (OSError, polars.exceptions.PolarsError, polars.exceptions.PanicException) as error:
        raise UserError(
            f"{path}: damaged or not Parquet ({_line(error)}); run the command that wrote it again"
        ) from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:120]
