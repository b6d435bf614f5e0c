"""What a run or a sweep gives back."""

from dataclasses import dataclass
from pathlib import Path

import polars


@dataclass(frozen=True, eq=False)
class Results:
    """What a run or a sweep measured, and where its files are.

    Attributes:
        directory: the run's or the sweep's. `fastwi.load_network` takes it, or the results themselves.
        problems: a line for each network that diverged, and for each reason why something was not done. Empty: all is
            measured. A network that diverged has no further rows.
        frame: a row a measurement. Of a run the columns of metrics.jsonl (stage, epoch, network, batch_norm,
            train_loss, learning_rate, test_loss, test_accuracy_%), null where there is none; of a sweep those of
            results.parquet, in long form.
        gains: a row an average and its children, as in gains.parquet: accuracies at interpolation (%), gains over the
            best child and over the children's mean (points), lists over the epochs trained on.
    """

    directory: Path
    problems: tuple[str, ...]
    frame: polars.DataFrame
    gains: polars.DataFrame
