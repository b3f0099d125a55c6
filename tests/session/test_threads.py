"""Threads: edits one at a time, and every forward on the weights of one moment."""

import copy
import io
import pickle
import threading
import time
from contextlib import nullcontext

import pytest
import torch
from helpers import same_bits

import rome_fast
from rome_fast import Session
from rome_fast.errors import SessionError


def run_all(*targets):
    """Run them at once; what one of them raises is raised here."""
    errors = []

    def guarded(target):
        try:
            target()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(target,)) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if errors:
        raise errors[0]


def test_two_threads_that_edit_are_one_after_the_other(gpt2, options, requests):
    model, tok = gpt2
    fresh = copy.deepcopy(model)
    with Session(model, tok, **options, form="weight") as session:
        run_all(
            lambda: [session.edit(request) for request in requests[:3]],
            lambda: [session.edit(request) for request in requests[3:]],
        )
        log = session.log
        assert [edit.edit_id for edit in log.edits] == [1, 2, 3, 4, 5, 6]
    log.apply(fresh)
    assert same_bits(fresh, model.state_dict())


def test_a_thread_that_generates_sees_whole_models_only(gpt2, options, requests):
    """Each of its logits is that of the model after some number of edits, to the bit."""
    model, tok = gpt2
    fresh, seen, done = copy.deepcopy(model), [], threading.Event()
    ids = torch.tensor([tok("The founder is Steve Jobs")["input_ids"]])

    @torch.no_grad()
    def read():
        while not done.is_set():
            seen.append(model(ids).logits)

    with Session(model, tok, **options, form="weight") as session:

        def edit():
            try:
                for request in requests:
                    session.edit(request)
                    time.sleep(0.01)
            finally:
                done.set()

        run_all(read, edit)
        log = session.log
    possible = []
    for n in range(len(log.edits) + 1):
        part = log.copy()
        part.edits = part.edits[:n]
        applied = part.apply(fresh)
        with torch.no_grad():
            possible.append(fresh(ids).logits)
        applied.revert()
    moments = [next(i for i, p in enumerate(possible) if torch.equal(p, x)) for x in seen]
    assert moments == sorted(moments)
    assert len(set(moments)) > 2


def test_reading_keeps_edits_out(gpt2_session, requests):
    session, _ = gpt2_session
    inside, events = threading.Event(), []

    def read():
        with session.reading(), session.reading():
            inside.set()
            time.sleep(0.3)
            events.append("read")

    def edit():
        inside.wait()
        session.edit(requests[0])
        events.append("edited")

    run_all(read, edit)
    assert events == ["read", "edited"]


def test_an_edit_inside_reading_is_refused(gpt2_session, requests):
    session, model = gpt2_session
    with session.reading():
        with pytest.raises(SessionError, match=r"would wait for itself"):
            session.edit(requests[0])
        model(torch.tensor([[1, 2, 3]]))
    assert session.edit(requests[0]).edit_id == 1


def test_a_forward_that_fails_does_not_lock_the_model(gpt2_session, requests):
    session, model = gpt2_session

    def fail():
        with pytest.raises(IndexError):
            model(torch.tensor([[10**6]]))

    run_all(fail)
    run_all(lambda: session.edit(requests[0]))


def saved_and_loaded(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), saved_and_loaded]
)
def test_a_copy_of_the_model_does_not_pass_the_lock(gpt2, options, requests, copied):
    model, tok = gpt2
    with Session(model, tok, **options, form="weight") as session:
        session.edit(requests[0])
        other = copied(model)
        assert same_bits(other, model.state_dict())
        with session._lock.editing():
            run_all(lambda: other(torch.tensor([[1, 2, 3]])))
        with Session(other, tok, **options, form="weight") as second:
            second.edit(requests[1])
    assert not model._forward_pre_hooks


def test_editors_are_not_kept_waiting_by_many_readers(gpt2_session, requests):
    session, model = gpt2_session
    done = threading.Event()

    @torch.no_grad()
    def read():
        while not done.is_set():
            model(torch.tensor([[1, 2, 3]]))

    def edit():
        try:
            session.edit(requests[0])
        finally:
            done.set()

    run_all(read, read, read, edit)
    assert len(session.log) == 1


@pytest.mark.parametrize("block", [False, True])
def test_readers_get_in_between_the_edits_of_a_batch(gpt2_session, requests, block):
    session, model = gpt2_session
    begun, done, n_edits = threading.Event(), threading.Event(), []

    @torch.no_grad()
    def read():
        begun.wait()
        while not done.is_set():
            with session.reading() if block else nullcontext():
                model(torch.tensor([[1, 2, 3]]))
                n_edits.append(len(session._ledger.log.edits))

    find = session._editor.find

    def slow(window):
        begun.set()
        time.sleep(0.05)  # the reader waits
        return find(window)

    session._editor.find = slow

    def edit():
        try:
            for request in requests:
                session.edit(request)
        finally:
            done.set()

    run_all(read, edit)
    assert set(n_edits) >= {1, 2, 3, 4, 5}


def test_a_reader_that_stops_waiting_holds_up_no_editor(gpt2_session, requests, monkeypatch):
    session, _ = gpt2_session
    lock, inside = session._lock, threading.Event()
    may_pass = lock._may_pass

    def interrupted(me, block):
        if me in lock._due:
            raise KeyboardInterrupt
        return may_pass(me, block)

    monkeypatch.setattr(lock, "_may_pass", interrupted)

    def read():
        inside.wait()
        with pytest.raises(KeyboardInterrupt), session.reading():
            pass

    def edit():
        with lock.editing():
            inside.set()
            while not lock._queue:
                time.sleep(0.01)
        session.edit(requests[0])

    run_all(read, edit)
    assert len(session.log) == 1


def test_two_sessions_on_two_layers_are_one_after_the_other(gpt2, options, requests):
    model, tok = gpt2
    elsewhere = {**options, "hparams": options["hparams"].replace(layers=[0])}
    with (
        Session(model, tok, **options, form="weight") as one,
        Session(model, tok, **elsewhere, form="weight") as other,
    ):
        run_all(
            lambda: [one.edit(request) for request in requests[:3]],
            lambda: [other.edit(request) for request in requests[3:]],
        )
        assert (len(one.log), len(other.log)) == (3, 3)
    assert not model._forward_pre_hooks


@pytest.mark.parametrize("verb", ["edit", "trial"])
def test_an_edit_of_another_layer_waits_for_the_session(gpt2, options, settings, requests, verb):
    model, tok = gpt2
    elsewhere = {**settings, "hparams": settings["hparams"].replace(layers=[0])}
    searching, go_on, events = threading.Event(), threading.Event(), []
    with Session(model, tok, **options, form="weight") as session:
        find = session._editor.find

        def slow(window):
            searching.set()
            go_on.wait(60)
            found = find(window)
            events.append("session")
            return found

        session._editor.find = slow

        def outside():
            searching.wait()
            if verb == "edit":
                rome_fast.edit(model, tok, requests[1], **elsewhere)
            else:
                with rome_fast.trial(model, tok, requests[1], **elsewhere):
                    pass
            events.append("outside")

        def let_go():
            searching.wait()
            time.sleep(0.3)
            assert events == []
            go_on.set()

        run_all(lambda: session.edit(requests[0]), outside, let_go)
    assert events == ["session", "outside"]


def test_close_waits_for_the_edit_that_is_being_made(gpt2, options, requests):
    model, tok = gpt2
    session = Session(model, tok, **options, form="weight")
    find, searching = session._editor.find, threading.Event()

    def slow(window):
        searching.set()
        time.sleep(0.3)
        return find(window)

    session._editor.find = slow

    def close():
        searching.wait()
        session.close()
        assert len(session.log) == 1, "closed in the middle of an edit"

    run_all(close, lambda: session.edit(requests[0]))
    Session(model, tok, **options, form="weight").close()


def test_an_edit_that_waited_for_close_is_refused(gpt2, options, requests):
    model, tok = gpt2
    session, entered = Session(model, tok, **options, form="weight"), threading.Event()

    def close():
        with session._lock.editing():
            entered.set()
            while not session._lock._n_waiting:
                time.sleep(0.01)
            session.close()

    def edit():
        entered.wait()
        with pytest.raises(SessionError, match="the Session is closed"):
            session.edit(requests[0])

    run_all(close, edit)
    assert len(session.log) == 0


@pytest.mark.covering(compiled=[False])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_block_may_wait_for_a_generation_in_another_thread(gpt2, options, requests, compiled):
    """How transformers' streamers are read; an edit that waits must not stop the worker."""
    model, tok = gpt2
    if compiled:
        model.compile(backend="eager")
    ids = torch.tensor([tok("The founder is Steve Jobs")["input_ids"]])
    with Session(model, tok, **options, form="weight") as session:
        inside = threading.Event()

        def read():
            with session.reading():
                inside.set()
                while not session._lock._n_waiting:
                    time.sleep(0.01)
                with torch.no_grad():
                    run_all(lambda: model.generate(ids, max_new_tokens=3, do_sample=False))
                    run_all(lambda: model(ids))

        def edit():
            inside.wait()
            session.edit(requests[0])

        run_all(read, edit)
        assert len(session.log) == 1
