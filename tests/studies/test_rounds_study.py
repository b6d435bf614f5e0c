"""The study `rounds`: every number from the sweep's table of results, by networks and epochs alone."""

import polars
import pytest
from studied import ROUNDS, column, measured, presented, studied_sweep

from fastwi.analysis.statistics import mean_estimate
from fastwi.report.rows import result_frame
from fastwi.studies import all_studies


@pytest.fixture(scope="module")
def several(digits_directory, tmp_path_factory, opened):
    with studied_sweep(digits_directory, tmp_path_factory, *ROUNDS) as sweep:
        yield sweep


def test_rounds_beside_the_children_and_the_parent_alone(several, tmp_path):
    found = measured("rounds", several)["rounds"]
    accuracies = result_frame(several.planned, several.measured).filter(metric="test_accuracy")

    def accuracy(parent: int, epoch: int, batch_norm: str, **facts: object) -> list[float]:
        rows = accuracies.filter(parent_seed=parent, epoch=epoch, batch_norm=batch_norm, **facts)
        return rows["value"].to_list()

    k, s, children = 1, 1, 2
    for row in found.iter_rows(named=True):
        at = row["parent_seed"], row["epochs"]
        stage = "after" if row["epochs_after"] else "interpolation"
        shared = row["round"] == 1 and not row["epochs_after"]
        of = {} if shared else {"experiment.rounds": row["experiment.rounds"]}
        (average,) = accuracy(*at, row["batch_norm"], network="average", stage=stage, **of)
        assert row["average_%"] == average
        assert row["epochs"] == k + row["round"] * s + row["epochs_after"]
        total = k + row["round"] * s * children + row["epochs_after"]
        assert row["epochs_total"] == total
        for name, epoch in (("alone", row["epochs"]), ("alone_total", total)):
            (alone,) = accuracy(at[0], epoch, row["batch_norm"], network="parent")
            assert row[f"{name}_%"] == alone
        assert row["over_alone_points"] == pytest.approx(average - row["alone_%"])
        assert row["over_total_points"] == pytest.approx(average - row["alone_total_%"])
        if row["epochs_after"]:
            assert row["best_child_%"] is row["over_best_points"] is None
        else:
            best = max(accuracy(*at, row["batch_norm"], network="child", round=row["round"]))
            assert row["over_best_points"] == pytest.approx(average - best)
    # 2 parents; of one round and of three, both treatments; and one epoch after each.
    assert found.height == 2 * ((1 + 3) * 2 + 2)
    tables, svg = presented("rounds", {"rounds": found}, tmp_path)
    for text in ("rounds = 3", "k = 1, s = "):
        assert text in svg
    # Lines end with the last round.
    axes = all_studies()["rounds"].draw({"rounds": found}, "").axes
    assert [list(axis.lines[0].get_xdata()) for axis in axes] == [[2], [2, 3, 4]]
    verdicts = tables[0]
    claims = dict.fromkeys(column(verdicts, "the average of the last round"))
    assert "first round" in [*claims][-1]
    for treatment in ("own", "recomputed"):
        of_three = found.filter(**{"experiment.rounds": 3, "epochs_after": 0, "batch_norm": treatment})
        last, first = (of_three.filter(round=number) for number in (3, 1))
        more = last["over_alone_points"] - first["over_alone_points"]
        here = [row for row in verdicts.rows if row[0] == "3" and treatment in row]
        values = {row[verdicts.columns.index("the average of the last round")]: row[-4] for row in here}
        of_last = (last[f"over_{name}_points"] for name in ("best", "alone", "total"))
        for claim, points in zip(claims, (*of_last, more), strict=True):
            value = mean_estimate(points.to_numpy(), last["parent_seed"].to_list()).value
            assert values[claim].startswith(f"{value:+.2f}")
    # What the last average is trained on to has no part in them.
    points = polars.col("over_alone_points", "over_total_points")
    trained = found.with_columns(polars.when(polars.col("epochs_after") > 0).then(99.0).otherwise(points).name.keep())
    assert all_studies()["rounds"].tables({"rounds": trained})[0] == verdicts
    assert len([row for row in verdicts.rows if row[0] == "1"]) == 2 * 3  # one round adds nothing up


def test_epochs_of_rounds_within_epochs_have_their_part(digits_directory, tmp_path_factory, opened):
    flags = ("--axes.experiment.k", "[2it]", "--axes.experiment.s", "[1]", "--experiment.rounds", "2")
    with studied_sweep(digits_directory, tmp_path_factory, *flags, "--sweep.parents", "[0]") as within:
        found = measured("rounds", within)["rounds"]
    k, s, children = 2 / 3, 1, 2  # epochs have 3 iterations
    for row in found.iter_rows(named=True):
        assert row["epochs"] == pytest.approx(k + row["round"] * s + row["epochs_after"])
        assert row["epochs_total"] == pytest.approx(k + row["round"] * s * children + row["epochs_after"])


def test_parents_trained_on_are_the_parents_of_a_larger_k(several):
    place = several.planned.places[-1]
    tree = place.tree
    assert [tree.epochs[tree.nodes[key]] for key in place.alone] == [2, 3, 4, 5, 6, 7, 8]
    assert {tree.noises[tree.nodes[key]] for key in (*place.parent, *place.alone)} == {1}
    assert tree.before[tree.nodes[place.alone[0]]] == place.clone_node


def test_a_sweep_of_one_round_and_without_a_parent_alone(opened, tmp_path):
    found = measured("rounds", opened)["rounds"]
    assert set(found["round"]) == {1}
    assert found["over_alone_points"].null_count() == found["over_total_points"].null_count() == found.height
    tables, _ = presented("rounds", {"rounds": found}, tmp_path)
    assert len(tables) == 2  # the verdicts, and the best child


@pytest.mark.parametrize("name", ["alone_%", "best_child_%"])
def test_what_diverged_is_null(several, name):
    """And the figure and the tables are drawn without it."""
    place = several.planned.places[0]
    whole = dict(several.measured)
    try:
        del several.measured[({"alone_%": place.alone, "best_child_%": place.ends}[name][0], "own")]
        frames = measured("rounds", several)
    finally:
        several.measured = whole
    gone = frames["rounds"].filter(polars.col(name).is_null(), epochs_after=0)
    assert set(gone["batch_norm"]) == {"own"}
    assert set(gone["epochs"]) == {2}
    assert all_studies()["rounds"].tables(frames)


def test_no_control_takes_a_first_round_for_a_whole_trajectory(digits_directory, tmp_path_factory, opened):
    flags = ("--axes.experiment.k", "[1]", "--axes.experiment.rounds", "[1, 2]", "--sweep.parents", "[0]")
    with studied_sweep(digits_directory, tmp_path_factory, *flags) as sweep:
        frame = measured("controls", sweep, treatments=("averaged",))["controls"]
    assert frame.filter(control="lawa").select("experiment.rounds", "s").unique().rows() == [(1, 1)]


def test_importance_counts_epochs_from_the_last_round(several):
    changes = measured("importance", several)["split_changes"]
    assert set(changes["experiment.rounds"]) == {1, 3}
    assert set(changes["epochs_after"]) == {1}


def test_recomputed_statistics_of_the_parent_alone_at_each_epoch(digits_directory, tmp_path_factory, opened):
    """The parent after as many epochs as the average, and after as many as all networks, has statistics of each."""
    every = ("--experiment.measure", "[own, recomputed]", "--sweep.parents", "[0]")
    with studied_sweep(digits_directory, tmp_path_factory, *ROUNDS, *every) as sweep:
        found = measured("rounds", sweep)["rounds"].filter(polars.col("epochs_after") > 0, batch_norm="recomputed")
        accuracies = result_frame(sweep.planned, sweep.measured).filter(
            metric="test_accuracy", network="parent", batch_norm="recomputed"
        )
    assert found.height == 2
    for row in found.iter_rows(named=True):
        for name, epoch in (("alone_%", row["epochs"]), ("alone_total_%", row["epochs_total"])):
            assert accuracies.filter(epoch=epoch)["value"].to_list() == [row[name]]
