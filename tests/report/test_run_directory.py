"""A run's directory: which run may go on there, and that what it was begun as stays noted."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
from commands import contents, rows_of
from drawn_measurements import made, spec_of
from mappings import config_from_mapping

from fastwi.config.read import config_from_yaml
from fastwi.config.time import Time
from fastwi.config.write import config_hash
from fastwi.errors import CheckpointError, UserError
from fastwi.experiment.planner import PlannedSweep, plan_run
from fastwi.experiment.tree import OWN
from fastwi.report.plan import naive_epochs
from fastwi.report.progress import trained_epochs
from fastwi.report.results import write_run
from fastwi.report.run_directory import RunDirectory, RunRecord
from fastwi.sealed import read_sealed


def test_a_directory_is_of_the_run_that_it_was_begun_as(tmp_path, digits_directory):
    paths = RunDirectory(tmp_path / "r")

    def planned(**experiment: int) -> tuple[str, PlannedSweep]:
        data = {"path": str(digits_directory)}
        engine = {"precision": "fp32"}
        config = config_from_mapping({"data": data, "engine": engine, "experiment": {"k": 2, "s": 1, **experiment}})
        found = plan_run(config, paths.store)
        return config_hash(config, found.inputs_of(config).digest), found

    identity, first = planned(after=1)
    longer_identity, longer = planned(after=2)
    assert not paths.check(first)  # there is none yet
    with paths.begun({"identity": identity}, first):
        before = contents(tmp_path)
        second = paths.begun({"identity": longer_identity}, longer)
        with pytest.raises(UserError, match="another process trains this run"), second:
            pass
    with paths.begun({"identity": identity}, first):  # it goes on
        pass
    assert contents(tmp_path) == before
    assert paths.check(first)
    assert not paths.check(longer)
    with pytest.raises(CheckpointError, match=r"experiment\.after: 1"):
        paths.check(planned(after=0)[1])
    for other in ({"k": 3, "after": 1}, {"s": 2, "after": 1}, {"children": 3, "after": 1}):
        with pytest.raises(CheckpointError, match="another configuration or dataset"):
            paths.check(planned(**other)[1])
    with paths.begun({"identity": longer_identity}, longer):
        pass
    assert read_sealed(paths.manifest, "") == {"identity": longer_identity}
    assert config_from_yaml(paths.config.read_text()).experiment.after == 2
    with pytest.raises(CheckpointError, match=r"experiment\.after: 2"):
        paths.check(first)
    with pytest.raises(CheckpointError, match=r"experiment\.after: 2"), paths.begun({"identity": identity}, first):
        pass  # as where the longer one began after this one's check
    changed = paths.manifest.read_bytes().replace(longer_identity.encode(), longer_identity[::-1].encode())
    paths.manifest.write_bytes(changed)
    with pytest.raises(CheckpointError, match=r"manifest\.json: is damaged"):
        paths.check(longer)


def test_what_was_trained_of_an_average_that_diverged_is_not_shown(tmp_path, seed):
    """It may have been, before the average was measured."""
    planned, found = made(spec_of({}), seed)
    (place,) = planned.places
    average = place.average, OWN
    found[average] = dataclasses.replace(found[average], test_loss=math.nan)
    store = SimpleNamespace(measurements=lambda wanted: {key: found[key] for key in wanted})
    paths = RunDirectory(tmp_path)
    with paths.begun({"identity": "r"}, planned):
        results = write_run(planned, paths, store, "digits", [])
    RunRecord(planned, store, paths).close()
    assert results.missing == len(place.after) == 2
    assert set(results.frame["stage"]) == {row["stage"] for row in rows_of(tmp_path)} == {
        "parent", "children", "interpolation"
    }  # fmt: skip
    assert [problem.partition(" in ")[0] for problem in results.problems] == ["average diverged"]


def test_a_run_notes_what_it_cost(tmp_path, seed):
    """Of epochs in part their part: two steps an epoch, three of the parent and two of each child."""
    planned, found = made(spec_of({}, {"k": Time("1ep1it"), "s": 1, "after": 0}), seed)
    store = SimpleNamespace(measurements=lambda wanted: {key: found[key] for key in wanted})
    paths, config = RunDirectory(tmp_path), planned.spec.base
    about = {"identity": config_hash(config, planned.inputs_of(config).digest), "commit": "a"}
    for _ in range(2):  # the second time it is finished
        with paths.begun(about, planned):
            write_run(planned, paths, store, "digits", [])
        cost = {"trained_epochs": 3.5, "seconds": float(len(found))}
        assert read_sealed(paths.manifest, "") == {**about, "cost": cost}
    assert paths.check(planned)
    assert trained_epochs(planned.tree, planned.tree.epoch_nodes()) == naive_epochs(planned.places) == 3.5
