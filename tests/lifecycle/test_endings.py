"""Work that nobody committed: what is said when its session, repository or process ends."""

from __future__ import annotations

import gc
import os
import signal
import textwrap
import warnings
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import zarr

import vzarr
from tests.lifecycle.zygote import Zygote

pytestmark = pytest.mark.filterwarnings("error::vzarr.UncommittedWarning")


def edit(session: vzarr.Session) -> None:
    """Make an array of four chunks, in a group: two documents."""
    session.root_group.create_array("a", data=np.arange(8), chunks=(2,))


def let_go(held: list[object]) -> None:
    """Drop the last references to what is in a list."""
    held.clear()
    gc.collect()


def silent(repo: vzarr.Repository) -> None:
    """Close it, and see that nothing is said."""
    repo.close()
    gc.collect()


# ── a session goes ───────────────────────────────────────────────────────────────────────────────


def test_a_session_that_is_let_go(repo):
    session = repo.session("main")
    edit(session)
    name = session.id
    held = [session]
    del session
    with pytest.warns(vzarr.UncommittedWarning) as caught:
        let_go(held)
    (warning,) = caught
    text = str(warning.message)
    assert text == (
        f"{repo.path}: session {name} on 'main' ended with 4 chunks and 2 documents uncommitted, "
        "and now lost: commit, or save a checkpoint, before the end"
    )


def test_edits_that_were_put_into_the_tree(repo):
    """Nothing is counted then: that would need the file, at any moment and in any thread."""
    session = repo.session("main")
    edit(session)
    assert session.has_changes
    name = session.id
    held = [session]
    del session
    with pytest.warns(vzarr.UncommittedWarning, match=f"{name} .* edits uncommitted"):
        let_go(held)


def test_a_session_and_its_repository_in_one_cycle(path):
    """The repository refers to its current session, and that to it: both go at once."""
    repo = vzarr.open(path)
    edit(repo.checkout("main"))
    held = [repo]
    del repo
    with pytest.warns(vzarr.UncommittedWarning, match="4 chunks and 2 documents"):
        let_go(held)
    with vzarr.open(path) as again:
        assert list(again.session("main").keys()) == []


def test_a_session_is_not_kept_for_the_sake_of_a_warning(repo):
    session = repo.session("main")
    edit(session)
    known = weakref.ref(session)
    held = [session]
    del session
    with pytest.warns(vzarr.UncommittedWarning):
        let_go(held)
    assert known() is None


@pytest.mark.parametrize("later", [False, True])
def test_a_checkpoint_is_named(repo, later):
    session = repo.session("main")
    edit(session)
    name = session.checkpoint()
    if later:
        session.set("a/c/0", b"later")
    held = [session]
    del session
    with pytest.warns(vzarr.UncommittedWarning) as caught:
        let_go(held)
    text = str(caught[0].message)
    assert f"repo.resume('{name}')" in text
    assert ("what came after its last checkpoint is lost" in text) == later
    assert ("saved in a checkpoint" in text) != later
    again = repo.resume(name)
    assert len(list(again.keys("a"))) == 5
    again.discard()


def committed(session: vzarr.Session) -> None:
    session.commit("all of it")


def discarded(session: vzarr.Session) -> None:
    session.discard()


def closed(session: vzarr.Session) -> None:
    session.close()


def taken_back(session: vzarr.Session) -> None:
    session.delete_below("")
    assert not session.has_changes


@pytest.mark.parametrize("end", [committed, discarded, closed, taken_back])
def test_nothing_is_said_of_what_somebody_decided_on(repo, end):
    session = repo.session("main")
    edit(session)
    end(session)
    del session
    silent(repo)


def test_nothing_is_said_of_a_transaction(repo):
    with repo.transaction("main", "one") as store:
        edit(store.session)
    with pytest.raises(ZeroDivisionError), repo.transaction("main", "two") as store:
        store.session.set("b", b"b")
        1 / 0  # noqa: B018
    del store
    silent(repo)


def test_nothing_is_said_of_readers_and_previews(repo):
    with repo.transaction("main", "one") as store:
        edit(store.session)
    repo.branches.create("dev", at="main~1")
    preview = repo.merge("main", "dev", dry_run=True)
    assert preview.diff
    reader = repo.session("main~1")
    store = repo.store("main", autocommit=True)
    zarr.open_array(store, path="a")[:2] = 7
    del reader, preview, store
    silent(repo)


# ── a repository is closed ───────────────────────────────────────────────────────────────────────


def test_closing_a_repository_with_edits_in_its_current_session(path):
    repo = vzarr.open(path)
    edit(repo.checkout("main"))
    with pytest.warns(vzarr.UncommittedWarning, match="4 chunks and 2 documents") as caught:
        repo.close()
    # It is said of the line that closed it, once, and the repository is closed then.
    assert caught[0].filename == __file__
    assert len(caught) == 1
    repo.close()
    gc.collect()
    with vzarr.open(path):
        pass


def test_it_is_closed_also_where_the_warning_is_an_error(path):
    repo = vzarr.open(path)
    edit(repo.checkout("main"))
    with pytest.raises(vzarr.UncommittedWarning):
        repo.close()
    vzarr.delete(path)


def test_the_end_of_a_with_block(path):
    with pytest.warns(vzarr.UncommittedWarning) as caught, vzarr.open(path) as repo:
        edit(repo.checkout("main"))
    assert len(caught) == 1
    with pytest.raises(ZeroDivisionError), vzarr.open(path) as repo:
        edit(repo.checkout("main"))
        1 / 0  # noqa: B018


def test_edits_that_change_nothing_are_not_lost(path):
    with vzarr.open(path) as repo:
        edit(repo.checkout("main"))
        repo.commit("one")
        repo.store().session.set("a/c/0", repo.store().session.get("a/c/0"))


# ── the process ends ─────────────────────────────────────────────────────────────────────────────

BEGIN = """
    import os, signal, sys, threading, warnings
    import numpy as np, vzarr, zarr
    repo = vzarr.open(sys.argv[1], author="Test <test@example.org>")
    session = repo.session("main")
    print(session.id, flush=True)
    zarr.create_array(session.store, name="a", data=np.arange(8), chunks=(2,))
"""


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    found = Zygote()
    yield found
    found.close()


@pytest.fixture
def run(zygote, path, tmp_path) -> Callable[[str], tuple[int, str, str]]:
    """Give what runs a script that edits a session: exit code, the session's id, what it said."""

    def run_script(source: str) -> tuple[int, str, str]:
        script = textwrap.dedent(BEGIN) + textwrap.dedent(source)
        code, printed, said = zygote.run(script, str(path), tmp_path)
        assert printed, said
        return code, printed.split()[0], said

    return run_script


def stop_with_sigterm() -> str:
    return """
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(4))
        signal.raise_signal(signal.SIGTERM)
    """


ENDS = {
    "the last line": ("", 0),
    "sys.exit": ("sys.exit(3)", 3),
    "an exception": ("raise ValueError('of the script')", 1),
    "a signal that is handled": (stop_with_sigterm(), 4),
    "the repository was let go": ("del repo", 0),
}


@pytest.mark.parametrize("end", ENDS)
def test_the_end_of_the_process(run, path, end):
    source, code = ENDS[end]
    found, name, said = run(source)
    assert found == code
    assert said.count("UncommittedWarning") == 1
    assert f"{path}: session {name} on 'main' ended with 4 chunks and 2 documents unc" in said
    assert "Exception ignored" not in said
    assert ("of the script" in said) == (end == "an exception")


def test_several_sessions_where_warnings_are_errors(run):
    other = "other = repo.session('main'); other.set('b', b'b')"
    _, _, said = run(f"warnings.simplefilter('error'); {other}")
    assert said.count("ended with") == 2


def test_it_can_be_silenced(run):
    assert run("warnings.simplefilter('ignore', UserWarning)")[2] == ""
    assert run("warnings.simplefilter('ignore', vzarr.UncommittedWarning)")[2] == ""


@pytest.mark.parametrize(
    "source",
    [
        "session.commit('all')",
        "session.discard()",
        "session.close()",
        # Registered after vzarr was imported, and so called before vzarr's own.
        "import atexit; atexit.register(session.commit, 'at exit')",
        # Nothing can be said then.
        "os._exit(0)",
        "os.kill(os.getpid(), signal.SIGKILL)",
    ],
)
def test_nothing_is_said(run, source):
    code, _, said = run(source)
    assert said == ""
    assert code == (-signal.SIGKILL if "SIGKILL" in source else 0)


def test_a_checkpoint_at_the_end_of_the_process(run, path):
    _, name, said = run("session.checkpoint()")
    assert "4 chunks and 2 documents uncommitted, but saved in a checkpoint" in said
    assert f"repo.resume('{name}')" in said
    with vzarr.open(path) as repo:
        session = repo.resume(name)
        session.commit("resumed")
        assert zarr.open_array(repo.store("main"), path="a")[:].sum() == 28


DAEMON = """
    begun = threading.Event()
    def write():
        while True:
            for number in range(1000):
                session.set(f"b/{number}", b"%d" % number)
                session.has_changes
                begun.set()
    threading.Thread(target=write, daemon=True).start()
    begun.wait()
"""


def test_daemon_threads_that_write_when_the_process_ends(run):
    code, name, said = run(DAEMON)
    assert code == 0
    assert said.count("UncommittedWarning") == 1
    assert f"{name} on 'main' ended with" in said
    assert "Fatal" not in said


HELD = """
    from vzarr import endings
    endings._EXIT_TIMEOUT = 0.05
    held = threading.Event()
    def hold():
        with session._work.lock:
            held.set()
            threading.Event().wait()
    threading.Thread(target=hold, daemon=True).start()
    held.wait()
"""


def test_a_thread_that_never_lets_go(run):
    code, name, said = run(HELD)
    assert code == 0
    assert f"{name} on 'main' ended with edits uncommitted" in said


FORKS = """
    warnings.simplefilter("ignore", DeprecationWarning)
    pid = os.fork()
    if not pid:
        {child}
        sys.exit(5)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
    {parent}
"""


def test_a_forked_child_is_silent_about_its_parents_work(run):
    _, _, said = run(FORKS.format(child="del session", parent="session.commit('mine')"))
    assert said == ""


def test_a_forked_child_tells_of_its_own_work(run):
    child = "session.set('b', b'b'); print(session.id)"
    _, name, said = run(FORKS.format(child=child, parent="session.commit('mine')"))
    assert said.count("UncommittedWarning") == 1
    assert name not in said


def test_a_pool_is_silent(run):
    source = """
        import multiprocessing
        warnings.simplefilter("ignore", DeprecationWarning)
        with multiprocessing.get_context("fork").Pool(2) as pool:
            print(pool.map(abs, range(-4, 0)))
            pool.close()
            pool.join()
        session.commit("all")
    """
    assert run(source)[2] == ""


def test_zarrs_own_threads_end_as_well(run):
    """zarr stops its event loop at the exit, before or after we close the file."""
    code, _, said = run("zarr.open_array(session.store, path='a')[:] = 1; session.commit('all')")
    assert (code, said) == (0, "")


def test_warnings_are_no_noise_for_those_who_only_read(path):
    assert vzarr.open(path) is not None
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        repo = vzarr.open(path)
        repo.store()
        repo.tree()
        repo.status()
        silent(repo)
    assert os.path.exists(path)
