"""The journal's file when the disk, Ctrl-C or somebody else is in the way."""

import copy
import errno
import os
import threading
from contextlib import contextmanager

import pytest
import torch
from helpers import same_bits, state

from rome_fast import EditLog, SecondMoment, Session
from rome_fast.editlog.journal import read_records
from rome_fast.errors import EditLogError, JournalError, SecondMomentError


@pytest.fixture
def opened(gpt2, options, requests, tmp_path):
    """(session, model, journal) after one edit."""
    model, tok = gpt2
    path = tmp_path / "edits.journal"
    with Session(model, tok, **options, journal=path, form="weight") as session:
        session.edit(requests[0])
        yield session, model, path


def ids(log):
    return [edit.edit_id for edit in log.edits]


class FullDisk:
    """A file that takes part of what is written, then nothing."""

    def __init__(self, file, room):
        self._file, self._room = file, room

    def write(self, data):
        if not self._room:
            raise OSError(errno.ENOSPC, "No space left on device")
        n, self._room = self._file.write(data[: self._room]), 0
        return n

    def __getattr__(self, name):
        return getattr(self._file, name)


@contextmanager
def full(session, room):
    journal = session._ledger._journal
    file = journal._file
    journal._file = FullDisk(file, room)
    try:
        yield
    finally:
        journal._file = file


@pytest.mark.parametrize("room", [0, 1, 100])
def test_a_full_disk_refuses_the_edit(opened, requests, room):
    session, model, path = opened
    before, data = state(model), path.read_bytes()
    for use in (lambda: session.edit(requests[1]), session.undo, session.health):
        with full(session, room), pytest.raises(JournalError, match="No space left on device"):
            use()
        assert same_bits(model, before)
        assert path.read_bytes() == data
    assert ids(session.log) == [1]
    assert session.edit(requests[1]).edit_id == 2
    assert ids(EditLog.load(path)) == [1, 2]


def test_what_could_not_be_cut_off_is_cut_by_the_next_write(opened, requests, monkeypatch):
    session, _, path = opened
    size = path.stat().st_size
    with monkeypatch.context() as patch:

        def fails(handle, length):
            raise OSError(errno.EIO, "Input/output error")

        patch.setattr(os, "ftruncate", fails)
        with full(session, 100), pytest.raises(JournalError, match="No space left"):
            session.edit(requests[1])
    assert path.stat().st_size == size + 100
    assert session.edit(requests[1]).edit_id == 2
    assert ids(EditLog.load(path)) == [1, 2]


@pytest.mark.parametrize("moment", ["fsync", "append"])
def test_ctrl_c_after_the_write_leaves_log_and_journal_the_same(
    opened, requests, monkeypatch, moment
):
    session, model, path = opened
    before = state(model)
    place = os if moment == "fsync" else session._ledger._journal
    real = getattr(place, moment)

    def interrupted(*args):
        real(*args)
        raise KeyboardInterrupt

    for use in (lambda: session.edit(requests[1]), session.undo):
        with monkeypatch.context() as patch:
            patch.setattr(place, moment, interrupted)
            with pytest.raises(KeyboardInterrupt):
                use()
        assert same_bits(model, before)
        assert ids(session.log) == ids(EditLog.load(path)) == [1]
        assert len(session.log) == len(EditLog.load(path)) == 1
    for n in (2, 3):
        session.edit(requests[n])
        assert ids(session.log) == ids(EditLog.load(path)) == list(range(1, n + 1))


def test_a_number_that_does_not_rise_is_damage(opened):
    session, model, path = opened
    tok = session._editor.tok
    data = path.read_bytes()
    session.close()
    path.write_bytes(data + data[_first_end(data) :])
    with pytest.raises(JournalError, match="edit 1 comes after edit 1"):
        Session.resume(path, model, tok)
    with pytest.raises(EditLogError, match="edit 1 comes after edit 1"):
        EditLog.load(path)


def _first_end(data):
    at = data.index(b"\n") + 1
    return at + 44 + int.from_bytes(data[at + 4 : at + 12], "little")


def test_an_undo_writes_only_what_it_changes(opened, requests):
    session, _, path = opened
    session.edit_many(requests[1:4], progress=False)
    session.undo(2)
    session.undo()
    session.redo(2)
    told = [r.fields for r in read_records(path)[0] if r.fields["kind"] == "taken_out"]
    assert [(fields["out"], fields["back"]) for fields in told] == [
        ([3, 4], []),
        ([2], []),
        ([], [2, 3]),
    ]
    assert [edit.edit_id for edit in EditLog.load(path).holding()] == [1, 2, 3]


def test_a_file_that_was_cut_short_is_not_written_to(opened, requests):
    session, model, path = opened
    before, data = state(model), path.read_bytes()
    os.truncate(path, len(data) - 10)
    with pytest.raises(JournalError, match=f"cut short by something else: it has {len(data) - 10}"):
        session.edit(requests[1])
    assert same_bits(model, before)
    path.write_bytes(data)
    assert session.edit(requests[1]).edit_id == 2


@pytest.mark.parametrize("change", ["deleted", "replaced"])
def test_an_edit_is_not_acknowledged_into_a_file_that_is_gone(opened, requests, change):
    session, model, path = opened
    before, moved = state(model), path.with_name("moved")
    path.rename(moved)
    if change == "replaced":
        path.write_bytes(moved.read_bytes())
    with pytest.raises(JournalError, match="was moved, deleted or replaced"):
        session.edit(requests[1])
    assert same_bits(model, before)
    assert ids(session.log) == [1]
    moved.rename(path)
    assert session.edit(requests[1]).edit_id == 2
    assert ids(EditLog.load(path)) == [1, 2]


def test_a_relative_path_stays_where_it_was(gpt2, options, requests, tmp_path, monkeypatch):
    model, tok = gpt2
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with Session(model, tok, **options, journal="edits.journal", form="weight") as session:
        session.edit(requests[0])
        monkeypatch.chdir("elsewhere")
        session.edit(requests[1])
    assert ids(EditLog.load(tmp_path / "edits.journal")) == [1, 2]
    assert not any((tmp_path / "elsewhere").iterdir())


def test_a_session_closed_in_another_thread_lets_the_journal_go(opened):
    session, _, path = opened
    thread = threading.Thread(target=session.close)
    thread.start()
    thread.join()
    log, (model, tok) = EditLog.load(path), (session._editor.model, session._editor.tok)
    session._ledger.history.replay([])
    with Session.resume(path, model, tok) as again:
        assert ids(again.log) == ids(log)


def test_a_journal_has_one_session_at_a_time(opened, tmp_path, _pristine):
    _, _, path = opened
    model, tok = copy.deepcopy(_pristine["gpt2"])
    (tmp_path / "link").symlink_to(path)
    for name in (path, tmp_path / "link"):
        with pytest.raises(JournalError, match="another Session has it open"):
            Session.resume(name, model, tok)


def test_an_opening_that_fails_leaves_no_journal(gpt2, options, requests, tmp_path):
    model, tok = gpt2
    path = tmp_path / "edits.journal"
    poor = SecondMoment(256)
    poor.add(torch.randn(10, 256))
    with pytest.raises(SecondMomentError):
        Session(model, tok, **{**options, "second_moment": poor}, journal=path, form="weight")
    assert not path.exists()
    with Session(model, tok, **options, journal=path, form="weight") as session:
        session.edit(requests[0])


def test_a_folder_that_cannot_be_synced_is_a_journal_error(gpt2, options, tmp_path, monkeypatch):
    model, tok = gpt2
    path, fsync = tmp_path / "edits.journal", os.fsync

    def fails_for_folders(handle):
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails_for_folders)
        with pytest.raises(JournalError, match=r"cannot be written: .*Invalid argument"):
            Session(model, tok, **options, journal=path, form="weight")
    assert [file.name for file in tmp_path.iterdir()] == ["edits.journal.lock"]
    Session(model, tok, **options, journal=path, form="weight").close()


def test_what_is_no_regular_file_is_refused(gpt2, options, tmp_path):
    model, tok = gpt2
    with pytest.raises(JournalError, match="is no regular file: name another"):
        Session(model, tok, **options, journal=tmp_path, form="weight")
    assert not tmp_path.with_name(f"{tmp_path.name}.lock").exists()


def test_a_folder_that_cannot_be_made(gpt2, options, tmp_path):
    model, tok = gpt2
    (tmp_path / "file").write_text("")
    before = state(model)
    with pytest.raises(JournalError, match="cannot be opened"):
        Session(model, tok, **options, journal=tmp_path / "file" / "edits.journal", form="weight")
    assert same_bits(model, before)
    Session(model, tok, **options, form="weight").close()


@pytest.mark.parametrize("how", ["permissions", "simulated"])
def test_a_read_only_folder(gpt2, options, tmp_path, monkeypatch, how):
    model, tok = gpt2
    folder = tmp_path / "folder"
    folder.mkdir()
    if how == "permissions":
        folder.chmod(0o500)
        if os.access(folder, os.W_OK):
            pytest.skip("this user may write anywhere: see the simulated one")
    else:
        real = os.open

        def refuses(path, flags, *args, **options):
            if str(path).startswith(str(folder)) and flags & os.O_CREAT:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return real(path, flags, *args, **options)

        monkeypatch.setattr(os, "open", refuses)
    before = state(model)
    with pytest.raises(JournalError, match=r"cannot be opened: .*Permission denied"):
        Session(model, tok, **options, journal=folder / "edits.journal", form="weight")
    assert same_bits(model, before)
    assert not any(folder.iterdir())
    Session(model, tok, **options, form="weight").close()


def test_an_edit_is_on_the_disk_before_it_is_acknowledged(
    gpt2, options, requests, tmp_path, monkeypatch
):
    model, tok = gpt2
    path, synced = tmp_path / "edits.journal", []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (fsync(handle), synced.append(1))[0])
    with Session(model, tok, **options, journal=path, form="weight") as session:
        opened = len(synced)
        for n, request in enumerate(requests[:3], 1):
            session.edit(request)
            assert len(synced) == opened + n
            assert len(EditLog.load(path)) == n
