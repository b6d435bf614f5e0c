"""What an axis changes: paired within parents, over cells that agree in all else."""

import numpy as np
import polars

from fastwi.analysis.statistics import mean_estimate
from fastwi.report.effects import differences, effects_table
from fastwi.report.tables import sweep_tables

GAIN = "gain_best_own_points"


def drawn(seed: int) -> tuple[polars.DataFrame, np.ndarray]:
    """Gains of 2 x 2 x 2 x 2 cells of 6 parents with 2 pairs; and what the first axis adds to each."""
    draw, rows, added = np.random.default_rng(seed), [], np.empty((6, 2, 2, 2, 2))
    for parent in range(6):
        of_parent = draw.normal(scale=50)
        for pair in range(2):
            for j, drops in enumerate(([], [80])):
                for k in (1, 2):
                    base = of_parent + draw.normal()
                    for a, alpha in enumerate((0.25, 0.75)):
                        added[parent, pair, j, k - 1, a] = draw.normal(3)
                        for i, name in enumerate(("a", "b")):
                            gain = base + i * added[parent, pair, j, k - 1, a]
                            place = {
                                "model.name": name,
                                "schedule.drop_epochs": drops,
                                "k": k,
                                "s": 1,
                                "alpha": alpha,
                            }
                            rows.append(place | {"parent_seed": parent, "pair": pair, GAIN: gain})
    return polars.DataFrame(rows).sample(fraction=1, shuffle=True, seed=seed), added


def test_differences_are_of_what_agrees_in_all_else(seed):
    gains, added = drawn(seed)
    frame = gains.filter(
        ~((polars.col("parent_seed") == 0) & (polars.col("k") == 1) & (polars.col("model.name") == "b"))
    )
    ((first, value, rows),) = differences(frame, "model.name", [GAIN])
    sign = 1 if (first, value) == ("a", "b") else -1
    assert rows.height == added.size - 8
    for row in rows.iter_rows(named=True):
        drops = row["schedule.drop_epochs"]
        expected = sign * added[row["parent_seed"], row["pair"], len(drops), row["k"] - 1, int(row["alpha"] > 0.5)]
        assert abs(row[GAIN] - expected) < 1e-9


def test_the_table_has_the_mean_over_parents_of_each_axis(seed):
    gains, added = drawn(seed)
    gains = gains.sort("model.name")
    table = effects_table(gains, {"gain": GAIN})
    assert table is not None
    assert [row[0] for row in table.rows] == [
        "model.name",
        "schedule.drop_epochs",
    ]  # k and s have tables of their own
    expected = mean_estimate(added.ravel(), np.repeat(np.arange(6), 16))
    text = f"{expected.value:+.2f} [{expected.low:+.2f}, {expected.high:+.2f}]"
    assert table.rows[0] == ("model.name", "b", "a", "6", "96", text)


def test_none_without_axes_or_common_cells(seed):
    gains, _ = drawn(seed)
    one = gains.filter(polars.col("model.name") == "a").drop("model.name", "schedule.drop_epochs")
    assert effects_table(one, {"gain": GAIN}) is None
    apart = gains.filter((polars.col("model.name") == "a") == (polars.col("k") == 1)).drop("schedule.drop_epochs")
    assert effects_table(apart, {"gain": GAIN}) is None
    assert sweep_tables(gains.clear()) == []


def test_many_pairs_without_a_number_come_first():
    rows = [
        {"model.name": name, "k": 1, "s": 1, "alpha": None, "parent_seed": parent, "pair": 0,
         GAIN: None if parent < 150 else gain}
        for name, gain in (("a", 1.0), ("b", 3.0)) for parent in range(151)
    ]  # fmt: skip
    ((_, _, found),) = differences(polars.DataFrame(rows, infer_schema_length=None), "model.name", [GAIN])
    assert found[GAIN].drop_nulls().to_list() == [2.0]
