"""Files: whole or not at all, durable, one process at a time, and what killed ones leave."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fl_sim.errors import FlSimError
from fl_sim.files import (
    Stand,
    built_once,
    checksum,
    locked,
    sweep_temporaries,
    write_atomically,
)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_atomically(tmp_path / "file", b"old")
    before = checksum(path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(FlSimError, match="disk is full"):
        write_atomically(path, b"new")
    assert checksum(path) == before and [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "number", [errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.E2BIG]
)
def test_whatever_the_system_refuses_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refused(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.replace", refused)
    with pytest.raises(FlSimError) as caught:
        write_atomically(tmp_path / "file", b"")
    assert str(tmp_path / "file") in str(caught.value) and "Errno" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_of_a_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(FlSimError, match="cannot be written"):
        write_atomically(tmp_path / "a" / "b", b"")


def test_the_folder_is_made_durable_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    replace, sync = os.replace, os.fsync

    def noted_replace(old: Path, new: Path) -> None:
        replace(old, new)
        done.append("renamed")

    def noted_sync(handle: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        sync(handle)

    monkeypatch.setattr("os.replace", noted_replace)
    monkeypatch.setattr("os.fsync", noted_sync)
    write_atomically(tmp_path / "file", b"content")
    assert done == ["file", "renamed", "folder"]


def test_only_what_killed_writes_left_is_swept(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = [f".results.csv.{ended.pid}.140", f".a b.1.{ended.pid}.7"]
    mine = f".results.csv.{os.getpid()}.140"
    others = [".results.csv.lock", "results.csv.12.13", ".x.12", ".x.12.y", ".12.13"]
    for name in (*left, mine, *others):
        (tmp_path / name).write_text("")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / left[0]).write_text("")
    sweep_temporaries(tmp_path.iterdir(), spare_living=True)
    assert {p.name for p in tmp_path.iterdir()} == {*others, mine, "sub"}
    sweep_temporaries(tmp_path.rglob(".*"))
    assert {p.name for p in tmp_path.rglob("*")} == {*others, "sub"}


def test_a_cache_is_swept_of_its_own_file_only(tmp_path: Path) -> None:
    for name in (".key.json.1.2", ".key.done.1.2", ".other.json.1.2"):
        (tmp_path / name).write_text("")
    with built_once(tmp_path / "key.json"):
        names = {p.name for p in tmp_path.iterdir()}
    assert names == {"key.lock", ".other.json.1.2"}


FORKS = """
import os, sys, time
from pathlib import Path
from fl_sim.files import locked
with locked(Path(sys.argv[1])):
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    os.kill(os.getpid(), 9)
"""


def test_a_forked_child_does_not_keep_the_lock_of_a_killed_parent(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    parent = subprocess.Popen([sys.executable, "-c", FORKS, str(path)], start_new_session=True)
    assert parent.wait(timeout=60) == -9
    try:
        with locked(path):  # would wait for ever
            pass
    finally:
        os.killpg(parent.pid, 9)


def test_a_file_that_grew_is_cut_back_to_its_stand_and_an_edited_one_is_not(
    tmp_path: Path,
) -> None:
    path = tmp_path / "file"
    assert Stand.of(path).begins(path)
    path.write_bytes(b"first\n")
    stand = Stand.of(path)
    path.write_bytes(b"first\nsecond\n")
    stand.cut(path)
    assert path.read_bytes() == b"first\n"
    for damaged in (b"furst\nsecond\n", b"first", b""):
        path.write_bytes(damaged)
        with pytest.raises(FlSimError, match="file"):
            stand.cut(path)
        assert path.read_bytes() == damaged
    assert not Stand(10**18, stand.sha256).begins(path) and not Stand(-1, "").begins(path)
