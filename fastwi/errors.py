"""The errors that a user can fix. Commands print them in one line and exit with code 2."""

_LONGEST_LINE = 2000  # characters


class UserError(Exception):
    """Bad input. The message is one line that names what is wrong and how to fix it.

    Parts of a message may come from a damaged or hostile file: what a terminal would not print is escaped
    (`\\n`, `\\x1b`), and the middle of an overlong line is left out.
    """

    def __init__(self, message: str) -> None:
        super().__init__(self._plain(message))

    @staticmethod
    def _plain(message: str) -> str:
        return printable(message)


class BetonError(UserError):
    """A .beton file that is truncated, foreign, inconsistent or of a kind that is not supported."""


class ConfigError(UserError):
    """A configuration that cannot be run: unknown, duplicate, mistyped or impossible values. One line for each."""

    @staticmethod
    def _plain(message: str) -> str:
        return "\n".join(map(printable, message.split("\n")))


class CheckpointError(UserError):
    """A checkpoint that is damaged or belongs to another model, layout or run."""


def printable(line: str) -> str:
    """A line of a message as a terminal may show it; see `UserError`."""
    if len(line) > _LONGEST_LINE:
        line = f"{line[: _LONGEST_LINE // 2]} ... {line[-_LONGEST_LINE // 2 :]}"
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in line)
