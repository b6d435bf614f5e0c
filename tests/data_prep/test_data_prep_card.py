"""The card of a dataset stands beside the files that it describes, and beside no others."""

import pytest

import data_prep.write
from data_prep import prepare
from data_prep.dataset import silent
from data_prep.digits import load_digits
from data_prep.write import write_dataset
from fastwi.data.card import CARD_FILE


def test_no_old_card_stands_beside_new_files(tmp_path, monkeypatch):
    """Killed after the images were replaced and before the new card was written."""
    prepare("digits", tmp_path / "digits", writer="raw")
    assert (tmp_path / "digits" / CARD_FILE).exists()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(data_prep.write, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(load_digits("digits"), tmp_path / "digits", "raw", silent)
    assert not (tmp_path / "digits" / CARD_FILE).exists()
