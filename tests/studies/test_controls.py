"""controls against float64 networks, plain loops, and the sweep's own measurements."""

import numpy as np
import polars
import pytest
from studied import (
    ANNEALED,
    SCHEDULES,
    accuracy,
    by_cell,
    column,
    logits,
    mean_state,
    measured,
    mixed,
    presented,
    state_of,
    studied_sweep,
    treated,
    unclear,
)

from fastwi.analysis.pairs import all_pairs
from fastwi.experiment.tree import OWN
from fastwi.studies.controls import ADD, EMA_DECAY, STUDY, effects, trajectory_weights


@pytest.fixture(scope="module")
def frames(opened):
    return measured("controls", opened)


def test_every_control_of_the_plain_sweep(opened, frames):
    """At s = 1 the child of s = 2 is there: the trajectory at equal cost, and the children trained on."""
    frame = frames["controls"]
    seen = 0
    _, test = opened.resources.splits(opened.planned.points[0].config)
    pairs = by_cell(opened)
    for (k, s, parent), pair in pairs.items():
        off = list[float]()  # what rounding may change
        place = pair.place
        ends = [state_of(opened, key) for key in place.ends]
        expected = {}
        for treatment in ("own", "recomputed"):

            def score(states, treatment=treatment, epoch=k + s, off=off):
                found = [logits(opened, treated(opened, state, treatment, epoch), test) for state in states]
                off.extend(map(unclear, found))
                return found

            both = score(ends)
            accuracies = [accuracy(each, test) for each in both]
            of_average = accuracy(score([mean_state(ends)])[0], test)
            probabilities = [np.exp(each - np.logaddexp.reduce(each, axis=1)[:, None]) for each in both]
            expected["mean_child", None, treatment] = of_average, np.mean(accuracies)
            expected["best_child", None, treatment] = of_average, max(accuracies)
            expected["ensemble", None, treatment] = of_average, accuracy(sum(probabilities), test)
            off.append(unclear(np.log(sum(probabilities))))
            if s == 1:
                decayed = np.array([EMA_DECAY, 1]) / (1 + EMA_DECAY)
                paths = [[state_of(opened, key) for key in path] for path in pairs[k, 2, parent].place.children]
                for name, weights in (("child_longer", [0, 1]), ("lawa", [0.5, 0.5]), ("ema", list(decayed))):
                    found = score([mixed(*zip(weights, path, strict=True)) for path in paths])
                    expected[name, 2, treatment] = of_average, np.mean([accuracy(x, test) for x in found])
        if s == 1:
            on = [opened.measured[path[1], OWN].test_accuracy for path in pairs[k, 2, parent].place.children]
            expected["children_on", 1, "own"] = opened.measured[place.after[0], OWN].test_accuracy, np.mean(on)
        rows = frame.filter(polars.col("k") == k, polars.col("s") == s, polars.col("parent_seed") == parent)
        assert rows.height == len(expected)
        for row in rows.rows(named=True):
            average, control = expected[row["control"], row["epochs"], row["batch_norm"]]
            assert (row["average_%"], row["control_%"]) == pytest.approx((average, control), abs=max(off) + 1e-9), row
            assert row["effect_points"] == row["average_%"] - row["control_%"]
            seen += 1
    assert seen == 4 * 6 + 4 * 13


def test_a_child_that_ends_within_an_epoch_is_no_control_at_equal_cost(digits_directory, tmp_path_factory, opened):
    """Three children of one epoch cost three epochs, and a child has two and a third."""
    flags = ("--axes.experiment.k", "[1]", "--axes.experiment.s", "[1]", "--sweep.parents", "[0]")
    flags += ("--sweep.children", "3", "--sweep.tuple_size", "3")
    flags += ("--experiment.continue_children", "true", "--experiment.after", "1ep1it")
    with studied_sweep(digits_directory, tmp_path_factory, *flags) as within:
        found = measured("controls", within, treatments=("averaged",))["controls"]
    assert {"child_longer", "lawa", "ema"}.isdisjoint(found["control"])
    assert found.filter(control="children_on")["epochs"].to_list() == [1]


def test_controls_that_a_sweep_may_have(variants):
    """A dropped rate, other alphas, and another momentum: as the sweep measured them."""
    frames = measured("controls", variants, treatments=("averaged",))
    assert set(frames["controls"]["alpha"]) == {0.5}
    at = {(dict(pair.variant)["experiment.momentum"], pair.point.alpha, pair.point.parent): pair.place
          for pair in all_pairs(variants)}  # fmt: skip

    def accuracy_of(*keys):
        return float(np.mean([variants.measured[key, OWN].test_accuracy for key in keys]))

    for momentum in ("reset", "average"):
        for parent in (0, 1):
            place = at[momentum, 0.5, parent]
            rows = frames["controls"].filter(
                polars.col("experiment.momentum") == momentum, parent_seed=parent, batch_norm="own"
            )
            found = {(r["control"], r["value"], r["epochs"]): (r["average_%"], r["control_%"])
                     for r in rows.rows(named=True)}  # fmt: skip
            average = accuracy_of(place.average)
            expected = {
                ("alpha", f"{alpha:g}", None): (average, accuracy_of(at[momentum, alpha, parent].average))
                for alpha in (0.25, 0.75)
            }
            on = accuracy_of(*(path[1] for path in place.children))
            expected["dropped_rate", "0.1", 1] = average, on
            if momentum == "reset":
                other = accuracy_of(at["average", 0.5, parent].after[0])
                expected["experiment.momentum", "average", 1] = accuracy_of(place.after[0]), other
            assert {key: value for key, value in found.items() if key[1] is not None} == expected
            assert not {name for name, _, _ in found} & {"children_on", "lawa"}  # their rate has dropped
    rates = [variants.measured[key, OWN].learning_rate for key in place.children[0]]
    assert rates == pytest.approx([0.05, 0.005])
    assert {"dropped_rate", "alpha", "experiment.momentum"}.isdisjoint(frames["absent"]["control"])
    labels = [effect.label for effect in effects(frames["controls"])]
    for text in ("dropped learning rate (0.1 times, for 1 epoch more)", "another alpha (alpha 0.75)",
                 "experiment.momentum: average, after 1 epoch of further training"):  # fmt: skip
        assert any(text in label for label in labels), text


def test_a_rate_that_dropped_before_averaging_by_another_schedule(digits_directory, tmp_path_factory):
    with studied_sweep(digits_directory, tmp_path_factory, *SCHEDULES) as opened:
        frames = measured("controls", opened, treatments=("averaged",))
        place = {(dict(pair.variant)["schedule.drop_epochs"], pair.point.parent): pair.place
                 for pair in all_pairs(opened)}  # fmt: skip
        expected = []
        for parent in (0, 1):
            average = opened.measured[place[(), parent].average, OWN].test_accuracy
            dropped = [opened.measured[end, OWN].test_accuracy for end in place[(1,), parent].ends]
            expected.append(([], parent, "0.1", None, average, pytest.approx(np.mean(dropped))))
    rows = frames["controls"].filter(control="dropped_rate")
    names = ("schedule.drop_epochs", "parent_seed", "value", "epochs", "average_%", "control_%")
    assert rows.select(names).rows() == expected
    assert "dropped_rate" not in set(frames["absent"]["control"])
    labels = [effect.label for effect in effects(frames["controls"])]
    assert "children with a dropped learning rate (0.1 times, before averaging)" in labels


def test_what_is_left_of_the_gain_by_schedule(digits_directory, tmp_path_factory, opened):
    """Against children that train on by the same rates, under both statistics; the past is shared."""
    with studied_sweep(digits_directory, tmp_path_factory, *ANNEALED) as annealed:
        frames = measured("controls", annealed)
        frame = frames["controls"]
        found = {(row["schedule.at_average"], row["parent_seed"], row["control"], row["epochs"], row["batch_norm"]):
                 (row["average_%"], row["control_%"]) for row in frame.rows(named=True)}  # fmt: skip
        places = {(dict(pair.variant)["schedule.at_average"], pair.point.parent): pair.place
                  for pair in all_pairs(annealed)}  # fmt: skip
        rates = {}
        for (at, parent), place in places.items():
            assert place.ends == places["keep", parent].ends
            rates[at] = [annealed.measured[state, OWN].learning_rate for state in place.after]
            assert [annealed.measured[path[2], OWN].learning_rate for path in place.children] == [rates[at][1]] * 2
            for epochs in (1, 2):
                for name, treatment in (("own", OWN), ("recomputed", place.recomputed[2 + epochs].name)):
                    average, *children = (
                        annealed.measured[state, treatment].test_accuracy
                        for state in (place.after[epochs - 1], *(path[epochs] for path in place.children))
                    )
                    expected = (average, pytest.approx(np.mean(children)))
                    assert found.pop((at, parent, "children_on", epochs, name)) == expected
                    if at == "keep":
                        other = annealed.measured[places["anneal", parent].after[epochs - 1], treatment].test_accuracy
                        assert found.pop((at, parent, "schedule.at_average", epochs, name)) == (average, other)
        whole = STUDY.tables(frames)[0]
        pairs = dict(zip(column(whole, whole.columns[0]), column(whole, "pairs"), strict=True))
        assert pairs["the children's mean"] == pairs["the children's ensemble"] == "2"  # whatever comes after
        assert pairs["the children trained on, after the average is trained on as long (1 epoch)"] == "4"
        assert rates == {"keep": [0.05, 0.05], "anneal": [0.05, 0.025]}
        assert not {name for _, _, name, *_ in found} & {"children_on", "schedule.at_average"}
        assert {at for at, _, name, *_ in found if name == "lawa"} == {"keep"}  # its children go on as they began
        table = next(table for table in STUDY.tables(frames) if "is left" in table.title)
        assert table.columns[-3:] == ("+0", "+1", "+2")
        assert [row[0] for row in table.rows] == ["keep", "keep", "anneal", "anneal"]
        assert {len(row) for row in table.rows} == {len(table.columns)}
        begun = [column(table, "+0")[i] for i in range(4)]
        assert begun[:2] == begun[2:]
        assert column(table, "+2")[:2] != column(table, "+2")[2:]
        changed = next(table for table in STUDY.tables(frames) if "axis changes" in table.title)
        assert column(changed, "axis") == ["schedule.at_average"]
        for name in ("own", "recomputed"):
            last = frame.filter(control="children_on", epochs=2, batch_norm=name)
            means = dict(last.group_by("schedule.at_average").agg(polars.col("effect_points").mean()).rows())
            difference = means["anneal"] - means["keep"]
            assert column(changed, f"left of the gain at the end, {name}") == [f"{difference:+.2f} (n = 2)"]


def swept(digits_directory, tmp_path_factory, *flags, s="[1]"):
    """A sweep of one parent at k = 1."""
    cell = ("--axes.experiment.k", "[1]", "--axes.experiment.s", s, "--sweep.parents", "[0]")
    return studied_sweep(digits_directory, tmp_path_factory, *cell, *flags)


def mean_accuracy(sweep, *states) -> float:
    return float(np.mean([sweep.measured[state, OWN].test_accuracy for state in states]))


def test_controls_after_rounds_are_of_the_last_one(digits_directory, tmp_path_factory, opened):
    """Its children start from an average, which a rate that dropped in an earlier round has changed."""
    flags = ("--axes.schedule.drop_epochs", "[[], [1], [2]]", "--experiment.rounds", "2")
    with swept(digits_directory, tmp_path_factory, *flags, "--experiment.continue_children", "true") as sweep:
        frame = measured("controls", sweep, treatments=("averaged",))["controls"]
        places = {dict(pair.variant)["schedule.drop_epochs"]: pair.place for pair in all_pairs(sweep)}
        later = mean_accuracy(sweep, *places[2,].ends)
        on = {
            drops: (
                mean_accuracy(sweep, place.after[0]),
                mean_accuracy(sweep, *(path[-1] for path in place.children)),
            )
            for drops, place in places.items()
        }
    dropped = frame.filter(control="dropped_rate").select("schedule.drop_epochs", "value", "control_%")
    assert dropped.rows() == [([], "0.1", pytest.approx(later))]
    rows = frame.filter(control="children_on").select("schedule.drop_epochs", "average_%", "control_%").rows()
    assert {tuple(drops): accuracies for drops, *accuracies in rows} == {
        drops: pytest.approx(accuracies) for drops, accuracies in on.items()
    }


def test_the_children_s_longest_path_whatever_the_order_of_s(digits_directory, tmp_path_factory, opened):
    flags = ("--axes.experiment.s", "[2, 1]")
    with studied_sweep(digits_directory, tmp_path_factory, *flags, trains=False) as turned:
        found = measured("controls", turned, treatments=("averaged",), cells=("1,1",))["controls"]
    assert {"child_longer", "lawa", "ema", "children_on"} <= set(found["control"])


def test_a_child_trained_longer_has_the_pair_s_own_schedule(digits_directory, tmp_path_factory, opened):
    """Its first epoch is that of another schedule's child, too."""
    flags = ("--axes.schedule.drop_epochs", "[[], [2]]", "--experiment.after", "0")
    with swept(digits_directory, tmp_path_factory, *flags, s="[1, 2]") as sweep:
        frame = measured("controls", sweep, treatments=("averaged",), cells=("1,1",))["controls"]
        longer = [mean_accuracy(sweep, *pair.place.ends) for pair in all_pairs(sweep) if pair.s == 2]
    assert frame.filter(control="child_longer")["control_%"].to_list() == pytest.approx(longer)
    assert longer[0] != longer[1]


def test_children_that_go_on_by_another_schedule_than_the_average_are_no_control(
    digits_directory, tmp_path_factory, opened
):
    """Those of a larger s keep their rates, and the average's are annealed."""
    with swept(digits_directory, tmp_path_factory, "--schedule.at_average", "anneal", s="[1, 2]") as sweep:
        frames = measured("controls", sweep, treatments=("averaged",))
    assert "children_on" not in set(frames["controls"]["control"])
    assert "children_on" in set(frames["absent"]["control"])


def test_a_rate_that_dropped_is_compared_with_all_else_the_same(digits_directory, tmp_path_factory, opened):
    flags = ("--axes.schedule.drop_epochs", "[[], [1]]", "--axes.experiment.child_momentum", "[inherit, reset]")
    with swept(digits_directory, tmp_path_factory, *flags, "--experiment.after", "0") as sweep:
        frame = measured("controls", sweep, treatments=("averaged",))["controls"]
        expected = [
            (momentum, pytest.approx(mean_accuracy(sweep, *pair.place.ends)))
            for pair in all_pairs(sweep)
            for drops, momentum in [dict(pair.variant).values()]
            if drops
        ]
    assert frame.filter(control="dropped_rate").select("experiment.child_momentum", "control_%").rows() == expected


def test_a_part_of_an_epoch_is_no_whole_one(digits_directory, tmp_path_factory, opened):
    """A child of 4 iterations, where an epoch has 3, costs more than one epoch."""
    with swept(digits_directory, tmp_path_factory, "--experiment.after", "0", s="[4it, 2]") as sweep:
        frame = measured("controls", sweep, treatments=("averaged",), cells=("1,4it",))["controls"]
    assert set(frame["control"]) == {"mean_child", "best_child", "ensemble"}


def test_a_rate_that_dropped_before_averaging_counts_a_pair_once():
    """Whatever the axes of its further training are; after further epochs they are several pairs."""
    rows = [
        {"schedule.at_average": at, "k": 1, "s": 1, "alpha": None, "parent_seed": 0, "pair": pair,
         "control": "dropped_rate", "value": "0.1", "epochs": epochs, "batch_norm": "own", "effect_points": 1.0}
        for at in ("keep", "anneal") for pair in (0, 1) for epochs in (None, 2)
    ]  # fmt: skip
    assert [effect.estimate.n_pairs for effect in effects(polars.DataFrame(rows))] == [2, 4]


def test_labels_are_in_order_of_epochs():
    rows = [
        {"k": 1, "s": 2, "alpha": None, "parent_seed": 0, "pair": 0, "control": control, "value": value,
         "epochs": epochs, "batch_norm": "own", "effect_points": 1.0}
        for control, value in (("children_on", None), ("dropped_rate", "0.1"))
        for epochs in (3, 1, 2)
    ]  # fmt: skip
    labels = [effect.label for effect in effects(polars.DataFrame(rows))]
    assert [int(label.split(" epoch")[0].rpartition("(")[2].split()[-1]) for label in labels] == [1, 2, 3] * 2


def test_what_is_absent_is_said(frames):
    found = {row["control"]: row for row in frames["absent"].rows(named=True)}
    assert (found["lawa"]["pairs_without"], found["lawa"]["pairs"]) == (4, 8)
    assert set(found) == {*ADD} - {"recomputed"}
    assert all(row["add"] == ADD[name] for name, row in found.items())


def test_effects_are_means_over_parents(frames):
    found = {(effect.label, effect.batch_norm): effect.estimate for effect in effects(frames["controls"])}
    frame = frames["controls"].filter(control="ensemble", batch_norm="own")
    by_parent = [frame.filter(parent_seed=parent)["effect_points"].mean() for parent in (0, 1)]
    estimate = found["the children's ensemble", "own"]
    assert estimate.value == pytest.approx(np.mean(by_parent), abs=1e-12)
    assert (estimate.n_parents, estimate.n_pairs) == (2, 8)
    lawa = [value for (label, treatment), value in found.items() if label.startswith("LAWA") and treatment == "own"]
    assert len(lawa) == 4  # at s = 1 there is one average of the trajectory, however it is called
    assert {(value.value, value.n_pairs) for value in lawa} == {(lawa[0].value, 4)}


def test_lawa_over_many_epochs():
    """Over 2, 3 and 4 epochs: of two pairs of one parent."""
    rows = [
        {"k": 1, "s": 2, "alpha": None, "parent_seed": 0, "pair": pair, "control": "lawa", "value": None,
         "epochs": epochs, "batch_norm": "own", "effect_points": effect}
        for pair, by_epochs in enumerate(({2: 5.0, 3: 1.0, 4: 3.0}, {2: 4.0, 3: 6.0, 4: 2.0}))
        for epochs, effect in by_epochs.items()
    ]  # fmt: skip
    found = [
        effect.estimate.value for effect in effects(polars.DataFrame(rows, schema_overrides={"value": polars.String}))
    ]
    assert found == [4.5, 4.5, 2.5, 1.5]  # the last 2, half of 4, all, and the best in hindsight, for the control


def test_averages_along_a_trajectory_are_those_of_recursion_and_loop(seed):
    states = np.random.default_rng(seed).normal(size=5)
    moving = 0.0
    for state in states:
        moving = EMA_DECAY * moving + (1 - EMA_DECAY) * state
    expected = [states[-last:].mean() for last in range(1, 6)] + [moving / (1 - EMA_DECAY**5)]
    assert (trajectory_weights(5) @ states).tolist() == pytest.approx(expected, rel=1e-12)


def test_tables_and_figure(frames, tmp_path):
    (whole, by_cell, _, absent), drawn = presented("controls", frames, tmp_path)
    assert "n = 2: too few parents" in whole.title
    assert set(column(whole, "average is better")) == {"not settled (n = 2)"}
    assert not any("[" in text for table in (whole, by_cell) for row in (table.columns, *table.rows) for text in row)
    assert len(by_cell.rows) == 4 + 4  # each cell, own and recomputed
    assert column(by_cell, "one child trained as long as all together").count("not in this sweep") == 4
    said = dict(zip(column(absent, "control"), column(absent, ""), strict=True))
    assert said["children with a dropped learning rate"] == "not in this sweep"
    assert said["LAWA of one child at equal cost"] == "not for 4 of 8 pairs"
    assert all(label in drawn for label in column(whole, "average against"))
