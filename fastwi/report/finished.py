"""What a finished sweep left in its directory, read for the page: specification, gains, figures, studies."""

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import polars

from fastwi.config.analysis import AnalysisOptions
from fastwi.config.sweep import SweepSpec
from fastwi.config.sweepfile import sweep_from_yaml
from fastwi.errors import ConfigError, UserError
from fastwi.models.changes import NETWORKS
from fastwi.report import study as registered
from fastwi.sealed import MANIFEST, is_sealed, open_directory, yaml_damage

_GAIN_COLUMNS = ("k", "s", "alpha", "parent_seed", "pair", "gain_best_own_points", "after_%")


@dataclass(frozen=True)
class Study:
    """A study's files. `frames` by name; `options` as its manifest says them."""

    name: str
    directory: Path
    frames: Mapping[str, polars.DataFrame]
    options: Mapping[str, Any]
    manifest: Mapping[str, Any]


@dataclass(frozen=True)
class Finished:
    """A sweep's results. `yaml` is its sweep.yaml."""

    name: str
    directory: Path
    spec: SweepSpec
    yaml: str
    gains: polars.DataFrame
    manifest: Mapping[str, Any]
    studies: Mapping[str, Study]

    @property
    def command(self) -> str:
        """The command that makes the sweep's results again (and finds all of them in the store)."""
        return f"python -m fastwi.sweep --config {self._config}"

    def study_command(self, name: str) -> str:
        """The command that runs the study `name`, with the options that it was run with."""
        words = [f"python -m fastwi.analyze {name} --config {self._config}"]
        options = self.studies[name].options if name in self.studies else {}
        for each in fields(AnalysisOptions):
            given, default = options.get(each.name), each.default
            if isinstance(default, tuple):
                given = None if given is None else tuple(given)
            if given is not None and given != default:
                text = json.dumps(list(given)) if isinstance(given, tuple) else str(given)
                # Joined by =: a number below 0 would read as the next flag.
                words.append(f"--analysis.{each.name}={shlex.quote(text)}")
        return " ".join(words)

    @property
    def _config(self) -> str:
        return shlex.quote(str(self.directory / "sweep.yaml"))


def find_sweeps(targets: Iterable[Path], studies: Mapping[str, registered.Study]) -> list[Finished]:
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
        spec = _spec(path)
        directory = Path(spec.options.directory) / (spec.options.name or path.stem)
        if not (directory / "gains.parquet").exists():
            raise UserError(
                f"{path}: its results are not at {directory}; start where the sweep did, or give its directory"
            )
        directories.append(directory)
    if not directories:
        raise UserError(f"{target}: a store that no sweep is noted in (sweeps/*.yaml); give a sweep's directory")
    return directories


def _read(directory: Path, studies: Mapping[str, registered.Study]) -> Finished:
    about = open_directory(directory, "run the sweep again")
    spec = _spec(directory / "sweep.yaml")
    gains = _parquet(directory / "gains.parquet")
    lacking = [name for name in _GAIN_COLUMNS if name not in gains.columns]
    if lacking:
        raise UserError(f"{directory / 'gains.parquet'}: lacks the column {lacking[0]}; run the sweep again")
    found = {}
    for name, known in studies.items():
        home = directory / "analyses" / name
        # A study writes its manifest last: without one, what is there may be half of it.
        if (home / MANIFEST).exists():
            study = open_directory(home, f"run python -m fastwi.analyze {name} again")
            frames = known.renew({path.stem: _parquet(path) for path in sorted(home.glob("*.parquet"))})
            rows = study.get("rows")
            lost = [frame for frame in rows if frame not in frames] if isinstance(rows, dict) else []
            if lost:
                raise UserError(f"{home}: lacks {lost[0]}.parquet; run python -m fastwi.analyze {name} again")
            if about and NETWORKS in study and study[NETWORKS] != about.get(NETWORKS):
                raise UserError(
                    f"{home}: is of another source of the network than the sweep's results; run python -m "
                    f"fastwi.analyze {name} again"
                )
            options = study.get("options")
            found[name] = Study(name, home, frames, options if isinstance(options, dict) else {}, study)
    name = spec.options.name or directory.resolve().name
    return Finished(name, directory, spec, _text(directory / "sweep.yaml"), gains, about, found)


def _spec(path: Path) -> SweepSpec:
    try:
        text = _text(path)
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
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path}: damaged or not Parquet ({reason}); run the command that wrote it again") from error
