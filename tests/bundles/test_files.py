"""Files appear whole or not at all, beside others that write the same name, and after writers that were killed."""

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from uid.bundles import files
from uid.bundles.files import folder_written_whole, remove_dead, written_whole
from uid.errors import OutputError

STUCK = """
import sys, time
from pathlib import Path
from uid.bundles import files
with getattr(files, sys.argv[1])(Path(sys.argv[2])) as path:
    (path if path.is_file() else path / "part").write_text("half of it")
    print("writing", flush=True)
    time.sleep(600)
"""


def stuck(function: str, destination: Path) -> "subprocess.Popen[str]":
    """A process in the middle of writing."""
    words = [sys.executable, "-c", STUCK, function, str(destination)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ["a.png", "b" * 251 + ".png", "no suffix", "dots.and.Ünïcode", "x." + "y" * 200])
def test_a_file_of_any_name_is_whole_or_not_there(tmp_path: Path, name: str) -> None:
    def failing(replace: bool) -> None:
        with written_whole(tmp_path / name, replace=replace) as temporary:
            temporary.write_text("half")
            assert (tmp_path / name).exists() == replace
            raise RuntimeError

    with pytest.raises(RuntimeError):
        failing(replace=False)
    assert names(tmp_path) == []
    with written_whole(tmp_path / name) as temporary:
        temporary.write_text("whole")
    with pytest.raises(RuntimeError):
        failing(replace=True)
    assert (tmp_path / name).read_text() == "whole"
    assert names(tmp_path) == [name]


def test_what_appears_meanwhile_is_left_unless_it_may_be_replaced(tmp_path: Path) -> None:
    def write(replace: bool) -> None:
        with written_whole(tmp_path / "a.png", replace=replace) as temporary:
            temporary.write_text("mine")
            (tmp_path / "a.png").write_text("another's")

    with pytest.raises(OutputError, match="made by another program meanwhile"):
        write(replace=False)
    assert (tmp_path / "a.png").read_text() == "another's"
    write(replace=True)
    assert (tmp_path / "a.png").read_text() == "mine"
    assert names(tmp_path) == ["a.png"]


def test_without_hard_links_the_name_is_reserved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    for there in (False, True):
        if there:
            with pytest.raises(OutputError), written_whole(tmp_path / "a", replace=False) as temporary:
                temporary.write_text("second")
        else:
            with written_whole(tmp_path / "a", replace=False) as temporary:
                temporary.write_text("first")
    assert (tmp_path / "a").read_text() == "first"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755])
def test_a_replaced_file_passes_on_its_mode_and_owner(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "private.png"
    path.write_text("before")
    path.chmod(mode)
    if os.geteuid() == 0:
        os.chown(path, 1234, 4321)
    owner = path.stat().st_uid, path.stat().st_gid
    with written_whole(path) as temporary:
        temporary.write_text("after")
        assert stat.S_IMODE(temporary.stat().st_mode) == mode, "no moment in which others may read it"
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert (path.stat().st_uid, path.stat().st_gid) == owner
    assert path.read_text() == "after"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pipes in folders")
@pytest.mark.parametrize("when", ["before", "meanwhile"])
@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "socket", "folder", "device"])
def test_what_is_no_file_is_never_replaced(tmp_path: Path, kind: str, when: str) -> None:
    path = tmp_path / "a.png"

    def made() -> None:
        if kind == "folder":
            path.mkdir()
        elif kind == "device":
            path.symlink_to(os.devnull)
        elif kind == "socket":
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(path))
        else:
            os.mkfifo(pipe := path.with_name("pipe") if "link" in kind else path)
            if pipe != path:
                path.symlink_to(pipe)

    if when == "before":
        made()
    with pytest.raises(OutputError, match="not a file; choose"), written_whole(path) as temporary:  # noqa: PT012
        assert when == "meanwhile"
        temporary.write_text("after")
        made()
    assert not stat.S_ISREG(path.lstat().st_mode)
    assert not path.is_file()
    assert len(names(tmp_path)) == 1 + ("link to" in kind)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux' names of open files")
def test_a_name_of_an_open_file_is_never_replaced(tmp_path: Path) -> None:
    with (tmp_path / "redirected").open("w") as file:
        name = Path(f"/proc/self/fd/{file.fileno()}")
        (tmp_path / "stdout").symlink_to(name)
        (tmp_path / "again").symlink_to("stdout")
        for link in (name, tmp_path / "stdout", tmp_path / "again"):
            with pytest.raises(OutputError, match="a name of an open file"), written_whole(link):
                pass
    assert (tmp_path / "stdout").is_symlink()
    (tmp_path / "link").symlink_to("redirected")  # of any other kind, a link becomes the file
    with written_whole(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert ((tmp_path / "link").read_text(), (tmp_path / "redirected").read_text()) == ("new", "")


@pytest.mark.parametrize("function", ["written_whole", "folder_written_whole"])
@pytest.mark.parametrize("name", ["a.png", "frames"])
def test_only_what_the_dead_left_is_removed(tmp_path: Path, function: str, name: str) -> None:
    own = [".uid-notes.txt", ".a.0123abcd.png", ".uid-0123456789abcdef.01234567.a.b"]
    for each in own:
        (tmp_path / each).write_text("a user's own hidden file")
    alive, dead = (stuck(function, tmp_path / name) for _ in range(2))
    before = set(names(tmp_path)) - set(own)
    assert len(before) == 2
    dead.kill()
    dead.wait()
    remove_dead(tmp_path)
    left = set(names(tmp_path)) - set(own)
    assert len(left) == 1, "the living one's stays"
    alive.kill()
    alive.wait()
    files._swept.discard(str(tmp_path))
    with written_whole(tmp_path / "next") as temporary:
        temporary.write_text("")
    assert set(names(tmp_path)) == {"next", *own}


def test_a_killed_ones_scratch_folder_is_removed_by_the_next(tmp_path: Path) -> None:
    dead = stuck("scratch_folder", tmp_path)
    alive = stuck("scratch_folder", tmp_path)
    dead.kill()
    dead.wait()
    with files.scratch_folder(tmp_path) as folder:
        assert len(names(tmp_path)) == 2
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    alive.kill()
    alive.wait()
    remove_dead(tmp_path)
    assert names(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows holds no folders")
def test_a_sweeper_never_takes_what_a_living_one_has(tmp_path: Path) -> None:
    swept = threading.Event()

    def sweep() -> None:
        while not swept.wait(0.001):
            remove_dead(tmp_path)

    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    try:
        for _ in range(100):
            with files.scratch_folder(tmp_path) as folder, written_whole(tmp_path / "a") as temporary:
                (folder / "copy").write_text("whole")
                temporary.write_text("whole")
            with folder_written_whole(tmp_path / "frames") as folder:
                (folder / "1").write_text("whole")
            assert names(tmp_path / "frames") == ["1"]
            shutil.rmtree(tmp_path / "frames")
    finally:
        swept.set()
        sweeper.join()


def test_what_is_being_written_goes_when_the_process_must_end(tmp_path: Path) -> None:
    def end_midway() -> None:
        with written_whole(tmp_path / "a.png"), folder_written_whole(tmp_path / "frames") as folder:
            (folder / "1.png").write_text("one")
            assert len(names(tmp_path)) == 2
            files.remove_own()
            assert names(tmp_path) == []

    with pytest.raises(OutputError):
        end_midway()


def test_a_folder_that_vanishes_is_not_made_anew(tmp_path: Path) -> None:
    def vanishes_midway() -> None:
        with folder_written_whole(tmp_path / "frames") as folder:
            with written_whole(folder / "1.png") as temporary:
                temporary.write_text("one")
            files._remove(folder)
            with written_whole(folder / "2.png") as temporary:
                temporary.write_text("two")

    with pytest.raises(OutputError, match="gone"):
        vanishes_midway()
    with pytest.raises(OutputError, match="gone"), written_whole(tmp_path / "out" / "a.png", parents=False):
        pass
    with written_whole(tmp_path / "out" / "a.png") as temporary:
        temporary.write_text("made")
    assert names(tmp_path) == ["out"]


def test_a_killed_writer_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    process = stuck("written_whole", tmp_path / "a.png")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "a.png").exists()
