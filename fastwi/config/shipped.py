"""The configurations that come with fastwi, by name: `fastwi:digits` stands for the file digits.yaml among them."""

from pathlib import Path

from fastwi.config.wording import show
from fastwi.errors import ConfigError

PREFIX = "fastwi:"


def shipped_names() -> list[str]:
    """What may stand after `fastwi:`."""
    return sorted(path.stem for path in _directory().glob("*.yaml"))


def config_path(given: str, directory: Path = Path()) -> Path:
    """The file that `--config` or `base:` means.

    Args:
        given: a path, or `fastwi:NAME`.
        directory: what a relative path starts from.

    Raises:
        ConfigError: no configuration of that name comes with fastwi.
    """
    if not given.startswith(PREFIX):
        return directory / given
    name = given.removeprefix(PREFIX)
    names = shipped_names()
    if name not in names:
        raise ConfigError(f"{show(given)}: does not come with fastwi; after {PREFIX} write one of {', '.join(names)}")
    return _directory() / f"{name}.yaml"


def _directory() -> Path:
    """Installed, they are a folder of the package (setup.py); in a checkout they lie beside it."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"
