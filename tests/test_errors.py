"""Messages stay single, printable lines, whatever names a hostile file put into them."""

import pickle

import pytest

from fastwi.errors import CheckpointError, ConfigError, UserError


@pytest.mark.parametrize("kind", [UserError, CheckpointError])
def test_what_a_terminal_would_not_print_is_escaped(kind):
    message = str(kind("zip: 'a\nb\x1b[2J\ud800\u202e': é; rename it"))
    assert message == "zip: 'a\\nb\\x1b[2J\\ud800\\u202e': é; rename it"
    assert str(kind(message)) == message
    assert str(pickle.loads(pickle.dumps(kind("a\nb")))) == "a\\nb"  # from a worker to its driver


def test_a_configuration_has_a_line_for_each_problem():
    assert str(ConfigError("one: a\x07b\ntwo")) == "one: a\\x07b\ntwo"


def test_the_middle_of_an_overlong_line_is_left_out():
    message = str(UserError(f"name: {'x' * 100_000}; fix"))
    assert len(message) < 2100
    assert message.startswith("name: xxx")
    assert message.endswith("x; fix")
