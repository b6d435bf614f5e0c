"""Files are whole or absent, whatever goes wrong while they are written."""

import errno
import json
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars
import pytest

import fastwi.files
from fastwi.errors import UserError
from fastwi.files import atomic_open, atomic_path, locked_directory, write_json, write_parquet

ROOT = Path(fastwi.files.__file__).parents[1]


def test_a_file_appears_whole_with_the_permissions_of_the_umask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final, done = tmp_path / "new" / "a.bin", list[str]()
    for name in ("fsync", "replace"):
        do = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *given, name=name, do=do: (done.append(name), do(*given)))
    previous = os.umask(0o027)
    try:
        with atomic_path(final) as temporary:
            assert temporary.parent == final.parent
            temporary.write_bytes(b"content")
            assert not final.exists()
    finally:
        os.umask(previous)
    assert done == ["fsync", "replace"]
    assert final.read_bytes() == b"content"
    assert stat.S_IMODE(final.stat().st_mode) == 0o640
    assert list(final.parent.iterdir()) == [final]


def test_text_is_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    code = f"from fastwi.files import write_text; write_text({str(tmp_path / 'a.md')!r}, '\\xe4\\u2265')"
    plain = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-X", "utf8=0", "-c", code], env=plain, check=True)
    assert (tmp_path / "a.md").read_text(encoding="utf-8") == "\xe4\u2265"


@pytest.mark.parametrize("error", [RuntimeError("odd"), KeyboardInterrupt()])
def test_whatever_is_raised_leaves_the_earlier_file(tmp_path: Path, error: BaseException) -> None:
    final = tmp_path / "a.bin"
    final.write_bytes(b"earlier")

    def fail_half_way() -> None:
        with atomic_open(final) as stream:
            stream.write(b"half")
            raise error

    with pytest.raises(type(error)):
        fail_half_way()
    assert final.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [final]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_the_systems_refusals_name_the_file(tmp_path: Path, number: int) -> None:
    final = tmp_path / "a.bin"
    with pytest.raises(UserError) as caught, atomic_path(final):
        raise OSError(number, os.strerror(number))
    words = "no space left" if number in (errno.ENOSPC, errno.EDQUOT) else os.strerror(number)
    assert str(caught.value).startswith(f"{final}: ")
    assert words in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [write_json, write_parquet], ids=lambda write: write.__name__)
def test_a_disk_that_fills_while_a_file_is_written(tmp_path: Path, write: Callable[..., None]) -> None:
    """Whoever writes: a bound on the size of files stands in for the disk's."""
    final, frame = tmp_path / "a", polars.DataFrame({"a": list(range(2000))})
    content = frame["a"].to_list() if write is write_json else frame
    write(final, content)
    before = final.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
        with pytest.raises(UserError, match=f"{final}: "):
            write(final, content)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert final.read_bytes() == before
    assert list(tmp_path.iterdir()) == [final]


@pytest.mark.parametrize("path", ["file/a.bin", "directory"])
def test_a_file_where_a_directory_should_be_and_the_reverse(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "directory").mkdir()
    with pytest.raises(UserError, match=f"{path}: "), atomic_open(tmp_path / path) as stream:
        stream.write(b"x")
    assert {each.name for each in tmp_path.rglob("*")} == {"file", "directory"}


def test_json_is_indented_and_keeps_its_order(tmp_path: Path) -> None:
    value = {"b": [1, 2.5], "a": {"c": None}}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text()
    assert (json.loads(text), text[:8], text[-2:]) == (value, '{\n  "b":', "}\n")
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", [1, object()])
    assert (tmp_path / "a.json").read_text() == text


def test_a_kill_leaves_the_earlier_file(tmp_path: Path) -> None:
    final = tmp_path / "a.bin"
    final.write_bytes(b"earlier")
    program = (
        "import os, signal, sys\n"
        "from fastwi.files import atomic_open\n"
        "with atomic_open(sys.argv[1]) as stream:\n"
        "    stream.write(b'half')\n"
        "    stream.flush()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(final)], cwd=ROOT, check=False)
    assert killed.returncode == -9
    assert final.read_bytes() == b"earlier"
    (left,) = (path.name for path in tmp_path.iterdir() if path != final)
    assert (left[:7], left[-4:]) == (".a.bin.", ".tmp")


def test_a_directory_that_cannot_be_locked_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system without locks."""

    def none_left(_descriptor: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fastwi.files.fcntl, "flock", none_left)
    with pytest.raises(UserError, match=os.strerror(errno.ENOLCK)), locked_directory(tmp_path / "made"):
        pytest.fail("it is held")


def test_a_link_in_the_place_of_a_lock_is_refused(tmp_path: Path) -> None:
    """The file would be made elsewhere."""
    (tmp_path / ".lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"\.lock: "), locked_directory(tmp_path):
        pytest.fail("it is held")
    assert not (tmp_path / "elsewhere").exists()
