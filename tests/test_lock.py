"""Locks of stages: waited for, taken over from the dead, of this machine and of others."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.files import stats
from pipeline.run import lock as lock_module
from pipeline.run.folder import begin_stage
from pipeline.run.lock import FOLDER, Holder, holders, lock, wait_until_free
from pipeline.run.stage import Stage, all_inputs, remove, run_part, run_stage

context = multiprocessing.get_context("fork")


def hold(folder: Path, name: str, held: Event) -> None:
    with lock(folder, name):
        held.set()
        time.sleep(60)


@pytest.fixture
def holding(tmp_path: Path) -> BaseProcess:
    """A process that holds the lock `a/b`."""
    held = context.Event()
    process = context.Process(target=hold, args=(tmp_path, "a/b", held), daemon=True)
    process.start()
    assert held.wait(30)
    return process


def take(folder: Path) -> threading.Thread:
    """A thread that takes the lock `a/b` once."""

    def once() -> None:
        with lock(folder, "a/b"):
            pass

    thread = threading.Thread(target=once)
    thread.start()
    return thread


def test_a_living_holder_is_waited_for_and_a_dead_one_is_not(
    holding: BaseProcess, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert [holder.pid for holder in holders(tmp_path).values()] == [holding.pid]
    refused = pytest.raises(UserError, match=rf"a/b is being worked on by .*{holding.pid} on")
    with refused, lock(tmp_path, "a/b", wait=False):
        pass
    waiting = take(tmp_path)
    waiting.join(1)
    assert waiting.is_alive()
    assert holding.pid
    os.kill(holding.pid, signal.SIGKILL)
    waiting.join(60)
    assert not waiting.is_alive()
    assert capfd.readouterr().err.count("; waiting") == 1
    assert not (tmp_path / FOLDER).exists()
    with lock(tmp_path, "a/b", wait=False):
        assert list(holders(tmp_path)) == ["a/b"]


def elsewhere(folder: Path, **fields: str) -> Path:
    """The lock `a/b` of a process of another machine."""
    (folder / FOLDER).mkdir()
    path = folder / FOLDER / "a+b.7"
    path.write_text(Holder(host="far", pid=os.getpid(), machine="far", **fields).model_dump_json())
    os.utime(path, (2**31, 2**31))  # whose clock is years ahead
    return path


def test_another_machine_is_dead_when_it_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "EXPIRES", 4)
    path = elsewhere(tmp_path)
    waiting = take(tmp_path)
    for beat in range(10):
        waiting.join(0.5)
        os.utime(path, (beat, beat))
    assert waiting.is_alive(), "its signs of life count, whatever its clock says"
    begun = time.monotonic()
    waiting.join(60)
    assert not waiting.is_alive()
    assert time.monotonic() - begun > 3
    wait_until_free(tmp_path, "a/b")


def test_half_a_lock_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "EXPIRES", 0.5)
    elsewhere(tmp_path).write_text('{"host": "f')
    with lock(tmp_path, "a/b"):
        pass


def count(folder: Path, rounds: int) -> None:
    for _ in range(rounds):
        with lock(folder, "a/b"):
            number = int((folder / "number").read_text())
            time.sleep(0.001)
            (folder / "number").write_text(str(number + 1))


def test_many_take_turns_beside_the_locks_of_the_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "_LOOK", 0.002)
    (tmp_path / "number").write_text("0")
    (tmp_path / FOLDER).mkdir()
    own = lock_module._machine()
    for number in (3, 8):
        dead = Holder(host="here", pid=os.getpid(), machine=own, start="1")  # the number used again
        (tmp_path / FOLDER / f"a+b.{number}").write_text(dead.model_dump_json())
    processes = [context.Process(target=count, args=(tmp_path, 50)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert (tmp_path / "number").read_text() == "200"


def come_and_go(folder: Path) -> None:
    while True:
        with suppress(OSError):
            (folder / FOLDER).mkdir()
            (folder / FOLDER).rmdir()
        time.sleep(0.0002)


def test_the_folder_of_locks_may_come_and_go_at_any_moment(tmp_path: Path) -> None:
    other = context.Process(target=come_and_go, args=(tmp_path,))
    other.start()
    try:
        end = time.monotonic() + 3
        while time.monotonic() < end:
            assert not holders(tmp_path)
            assert not stats(tmp_path, f"{FOLDER}/*")
            with lock(tmp_path, "a/b"):
                assert list(holders(tmp_path)) == ["a/b"]
    finally:
        other.kill()
        other.join()


def lose(folder: Path, to: str) -> None:
    with lock(folder, "a/b"):
        time.sleep(0.3)
        (path,) = (folder / FOLDER).iterdir()
        path.unlink()
        if to:
            path.write_text(to)
        time.sleep(30)


@pytest.mark.parametrize("to", ["", Holder(host="far", machine="far").model_dump_json()])
def test_who_has_lost_its_lock_ends(
    to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "BEAT", 0.05)
    process = context.Process(target=lose, args=(tmp_path, to))
    process.start()
    process.join(60)
    assert process.exitcode == 2


def parted(folder: Path, work: Callable[..., None]) -> tuple[Stage, dict[str, object]]:
    stage = Stage("a/b", "work", (), lambda: {"x": 1}, work, part=work)
    return stage, all_inputs([stage])["a/b"]


def test_parts_of_a_stage_are_done_beside_each_other(tmp_path: Path) -> None:
    done: list[tuple[int, ...]] = []
    both = threading.Barrier(2)

    def work(folder: Path, *part: int) -> None:
        if part:
            both.wait(60)  # neither goes on without the other
        done.append(part)

    stage, inputs = parted(tmp_path, work)
    threads = [
        threading.Thread(target=run_part, args=(tmp_path, stage, inputs, i, 2)) for i in (0, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert run_stage(tmp_path, stage, inputs)
    assert sorted(done[:2]) == [(0, 2), (1, 2)]
    assert done[2] == ()
    run_part(tmp_path, stage, inputs, 0, 2)
    assert len(done) == 3, "a complete stage has no parts left"


def test_a_stage_at_work_is_not_removed(holding: BaseProcess, tmp_path: Path) -> None:
    begin_stage(tmp_path / "a/b", {})
    with pytest.raises(UserError, match="being worked on"):
        remove(tmp_path, ["a/b"])
    assert (tmp_path / "a/b").exists()
    holding.kill()
    holding.join()
    remove(tmp_path, ["a/b"])
    assert not (tmp_path / "a/b").exists()
