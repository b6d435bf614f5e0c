"""`fastwi:NAME` as `--config` and as `base:`, from any directory."""

from pathlib import Path

import pytest

from fastwi.config.analysisfile import read_analysis_request
from fastwi.config.read import read_request
from fastwi.config.shipped import config_path, shipped_names
from fastwi.config.sweepfile import read_sweep_request
from fastwi.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"


def test_every_file_is_there_by_its_name() -> None:
    assert shipped_names() == sorted(path.stem for path in CONFIGS.iterdir())
    for name in shipped_names():
        assert config_path(f"fastwi:{name}").samefile(CONFIGS / f"{name}.yaml")
    assert config_path("some/where.yaml", Path("mine")) == Path("mine/some/where.yaml")


def test_commands_take_it_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    request = read_request(["--config", "fastwi:digits", "--experiment.k", "7"], "fastwi.train")
    assert request.config == read_request([f"--config={CONFIGS / 'digits.yaml'}", "--experiment.k=7"], "x").config
    assert request.config_file is not None
    assert request.config_file.stem == "digits"
    # Whose base is another one of them.
    spec = read_sweep_request(["--config", "fastwi:barrier"]).spec
    assert spec == read_sweep_request(["--config", str(CONFIGS / "barrier.yaml")]).spec
    studied = read_analysis_request(["connectivity", "--config", "fastwi:barrier"], {"connectivity": ""})
    assert (studied.spec, studied.sweep) == (spec, "barrier")


def test_it_may_be_the_base_of_ones_own_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: fastwi:digits_k_s_grid\naxes:\n  experiment.k: [1]\n")
    spec = read_sweep_request(["--config", str(tmp_path / "mine.yaml")]).spec
    assert spec.base.data.path == "data/digits"
    assert {axis.path: axis.values for axis in spec.axes} == {"experiment.k": (1,), "experiment.s": (1, 2, 4)}
    (tmp_path / "mine.yaml").write_text("base: fastwi:digit\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml line 1: base: 'fastwi:digit'") as caught:
        read_sweep_request(["--config", str(tmp_path / "mine.yaml")])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["digit", "", "digits.yaml", "../configs/digits", "DIGITS"])
def test_a_wrong_name_lists_the_right_ones(name: str) -> None:
    with pytest.raises(ConfigError, match="--config") as caught:
        read_request(["--config", f"fastwi:{name}"], "fastwi.train")
    assert "\n" not in str(caught.value)
    assert all(each in str(caught.value) for each in (f"fastwi:{name}", *shipped_names()))
