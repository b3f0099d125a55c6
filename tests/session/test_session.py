"""A Session's edits, and taking them out: always the bits of a replay."""

import gc
import math

import pytest
import torch
from helpers import same_bits, state

import rome_fast
from rome_fast import EditRequest, HealthCheck, Session
from rome_fast.errors import (
    EditRejectedError,
    HparamsError,
    InvalidArgumentError,
    InvalidRequestError,
    JournalError,
    NonFiniteError,
    RevertError,
    SessionError,
    SessionWarning,
    UnhealthyError,
)
from rome_fast.prompt.ids import text_ids
from rome_fast.prompt.readback import read_targets
from rome_fast.prompt.target import find_target_ids


def test_edits_hold_and_are_numbered(tiny, options, requests):
    model, tok = tiny
    with Session(model, tok, **options, form="weight") as session:
        results = [session.edit(request) for request in requests[:4]]
        assert [result.edit_id for result in results] == [1, 2, 3, 4]
        assert all(result.rank_after == 1 for result in results)
        assert [edit.request.subject for edit in session.log.edits] == [
            result.request.subject for result in results
        ]
    # The edits stay after close().
    for result in results:
        prompt = text_ids(tok, result.request.text)
        target = [int(i) for i in find_target_ids(tok, result.request.text, result.request.target)]
        assert read_targets(model, tok, [prompt], [target])[0].rank == 1


def test_without_safeguards_a_session_is_edit_many(tiny, options, settings, requests):
    model, tok = tiny
    with rome_fast.trial(model, tok, requests, progress=False, **settings):
        bits = state(model)
    unguarded = {"retain": 0.0, "stop_loss": 0.05, "guard": rome_fast.Guard(float("inf"))}
    with Session(model, tok, **options, **unguarded, form="weight", solve="sequential") as session:
        session.edit_many(requests, progress=False)
    assert same_bits(model, bits)


@pytest.mark.covering
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_undo_of_everything_gives_every_bit_back(tiny, options, requests, dtype):
    model, tok = tiny
    before = state(model.to(dtype))
    with Session(model, tok, **options, form="weight") as session:
        session.edit_many(requests, progress=False)
        assert not same_bits(model, before)
        assert session.undo(len(requests)) == [6, 5, 4, 3, 2, 1]
        assert same_bits(model, before)
        assert len(session.log) == 0


@pytest.mark.covering
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_revert_in_the_middle_is_a_replay_without_it(tiny, options, requests, dtype):
    model, tok = tiny
    model.to(dtype)
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with Session(model, tok, **options, form="weight") as session:
        session.edit_many(requests, progress=False)
        whole = state(model)
        session.revert(3)
        without = state(model)
        log = session.log
        assert session.redo() == [3]
        assert same_bits(model, whole)
    model.load_state_dict(fresh)
    replay = rome_fast.EditLog(log.base)
    replay.edits = [edit for edit in log.edits if edit.edit_id != 3]
    replay.apply(model)
    assert same_bits(model, without)


def test_undo_and_redo_step_by_step(gpt2_session, requests):
    session, model = gpt2_session
    states = [state(model)]
    for request in requests[:4]:
        session.edit(request)
        states.append(state(model))
    for n in (3, 2, 1, 0):
        assert session.undo() == [n + 1]
        assert same_bits(model, states[n])
    for n in (1, 2, 3, 4):
        assert session.redo() == [n]
        assert same_bits(model, states[n])
    session.undo(2)
    session.edit(requests[4])
    with pytest.raises(RevertError, match=r"nothing to redo: .* since the last new one"):
        session.redo()


def test_a_result_reverts_its_own_edit(gpt2_session, requests):
    session, model = gpt2_session
    session.edit(requests[0])
    before = state(model)
    middle = session.edit(requests[1])
    middle.revert()
    assert same_bits(model, before)
    with pytest.raises(RevertError, match="edit_id 2 is not among the edits that hold"):
        middle.revert()


@pytest.mark.parametrize(
    ("n", "message"),
    [
        (2, r"n must be 1 to 1, the edits to undo; got 2"),
        (0, "n must be a whole number of 1 or more, got 0"),
        (-1, "n must be a whole number of 1 or more, got -1"),
        (True, "n must be a whole number of 1 or more, got True"),
        ("all", "n must be a whole number of 1 or more, got 'all'"),
    ],
)
def test_undo_of_more_than_there_is(gpt2_session, requests, n, message):
    session, model = gpt2_session
    session.edit(requests[0])
    before = state(model)
    with pytest.raises(RevertError, match=message):
        session.undo(n)
    assert same_bits(model, before)


def test_nothing_to_undo(gpt2_session, requests):
    session, _ = gpt2_session
    with pytest.raises(RevertError, match="nothing to undo: no edit is left"):
        session.undo()
    with pytest.raises(RevertError, match="nothing to redo: no edit was taken out"):
        session.redo()


def test_the_same_fact_again_replaces_what_was_edited(tiny, options, requests):
    model, tok = tiny
    with Session(model, tok, **options, form="weight") as session:
        session.edit(requests[0])
        before_first = state(model)
        session.undo()
        start = state(model)
        session.redo()
        session.edit(requests[1])
        both = state(model)
        again = session.edit({**requests[0], "target_new": "near"})
        assert again.replaced == (1,)
        assert again.success
        assert any("edit 1 was taken out" in text for text in again.warnings)
        assert [edit.edit_id for edit in session.log.holding()] == [2, 3]
        session.undo()  # what it had replaced holds again
        assert same_bits(model, both)
        session.redo()
        duplicate = session.edit({**requests[0], "prompt": " The founder  is {}".strip()})
        assert duplicate.replaced == (1, 3)
        said = [text for text in duplicate.warnings if "was taken out" in text]
        assert said == ["this fact was edited before: edit 3 was taken out"]
        assert [edit.edit_id for edit in session.log.holding()] == [2, 4]
        session.undo(4)
        assert same_bits(model, start)
        assert not same_bits(model, before_first)


def test_an_edit_does_not_look_at_all_earlier_ones(gpt2_session, requests, monkeypatch):
    session, _ = gpt2_session
    session.edit(requests[0])
    for scan in ("holding", "kept", "same_fact"):
        monkeypatch.setattr(rome_fast.EditLog, scan, None)
    assert session.edit(requests[1]).success


def test_what_the_book_looks_up_is_what_the_log_says(gpt2_session, requests, monkeypatch):
    session, _ = gpt2_session
    ledger, parsed = session._ledger, [EditRequest.parse(request) for request in requests]

    def check():
        assert ledger.holding() == ledger.log.holding()
        for request in parsed:
            assert ledger.same_fact(request) == ledger.log.same_fact(request)

    check()
    for step in (
        lambda: session.edit(requests[0]),
        lambda: session.edit_many(requests[1:4], order="independent", progress=False),
        lambda: session.edit({**requests[1], "target_new": "near"}),
        session.undo,
        lambda: session.revert(1),
        lambda: session.redo(2),
        lambda: session.edit({**requests[1], "target_new": "near"}),
        lambda: session.undo(2),
    ):
        step()
        check()
    write_down = ledger._write_down

    def interrupted(log, records):
        write_down(log, records)
        raise KeyboardInterrupt

    monkeypatch.setattr(ledger, "_write_down", interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.edit(requests[5])
    check()


def test_a_failed_replacement_leaves_the_old_edit(gpt2_session, requests):
    session, model = gpt2_session
    session.edit(requests[0])
    session.edit(requests[1])
    session.edit(requests[2])
    whole = state(model)
    session.undo()
    before = state(model)
    too_long = {**requests[0], "target_new": "river " * 600}
    with pytest.raises(InvalidRequestError, match="shorten the prompt"):
        session.edit(too_long)
    assert same_bits(model, before)
    assert len(session.log) == 2
    assert session.redo() == [3]
    assert same_bits(model, whole)


def test_a_window_of_independent_requests(tiny, options, requests):
    model, tok = tiny
    longer = options["hparams"].replace(v_num_grad_steps=15, v_lr=0.3)
    with Session(model, tok, **{**options, "hparams": longer}, form="weight") as session:
        again = {**requests[0], "target_new": "near"}
        stream = session.stream(
            [*requests[:4], again], order="independent", window=4, progress=False
        )
        results = list(stream)
        assert [result.window for result in results] == [4, 4, 4, 4, 1]
        assert results[4].replaced == (1,)
        assert all(result.success for result in results[1:])


def test_a_break_leaves_the_window_in(gpt2_session, requests):
    session, _ = gpt2_session
    for _ in session.stream(requests, order="independent", window=4, progress=False):
        break
    assert len(session.log) == 4


def test_a_bad_request_leaves_its_window_unedited(gpt2_session, requests):
    session, _ = gpt2_session
    bad = [*requests[:3], {"prompt": "{} is"}]
    stream = session.stream(bad, order="independent", window=2, progress=False)
    assert [next(stream).edit_id, next(stream).edit_id] == [1, 2]
    with pytest.raises(InvalidRequestError, match=r"requests\[3\]: request lacks subject"):
        next(stream)
    assert len(session.log) == 2


def test_a_generator_is_read_as_the_edits_are_made(gpt2_session, requests):
    session, _ = gpt2_session
    read = []

    def source():
        for request in requests:
            read.append(request["subject"])
            yield request

    stream = session.stream(source(), progress=False)
    assert read == []
    assert next(stream).edit_id == 1
    assert read == ["Steve Jobs"]
    next(stream)
    assert len(session.log) == 2


def test_a_stream_that_nobody_iterates_says_so(gpt2_session, requests):
    session, model = gpt2_session
    before = state(model)
    with pytest.warns(SessionWarning, match="never iterated, so nothing was edited"):
        session.stream(requests, progress=False)
        gc.collect()
    assert same_bits(model, before)


def test_edit_many_has_edited_when_it_returns(gpt2_session, requests):
    session, _ = gpt2_session
    results = session.edit_many(iter(requests[:3]), progress=False)
    assert [result.edit_id for result in results] == [1, 2, 3]
    assert len(session.log) == 3
    assert session.edit_many([]) == []


def test_a_bad_request_of_edit_many_is_named_before_anything_is_edited(gpt2_session, requests):
    session, model = gpt2_session
    before = state(model)
    with pytest.raises(InvalidRequestError, match=r"requests\[1\]: request lacks subject"):
        session.edit_many([requests[0], {"prompt": "{} is"}], progress=False)
    assert same_bits(model, before)
    assert len(session.log) == 0


def test_a_bad_request_in_a_stream_is_named(gpt2_session, requests):
    session, _ = gpt2_session
    stream = session.stream([requests[0], {"prompt": "{} is"}], progress=False)
    assert next(stream).success
    with pytest.raises(InvalidRequestError, match=r"requests\[1\]: request lacks subject"):
        next(stream)
    assert len(session.log) == 1


@pytest.mark.parametrize("kind", [lambda r: None, lambda r: 5, dict, EditRequest.parse, str])
def test_requests_that_are_no_list_are_refused_by_the_call(gpt2_session, requests, kind):
    session, _ = gpt2_session
    with pytest.raises(InvalidRequestError, match=r"requests must be a list .* wrap it in a list"):
        session.edit_many(kind(requests[0]), progress=False)
    with pytest.raises(InvalidRequestError, match=r"requests must be a list .* wrap it in a list"):
        session.stream(kind(requests[0]), progress=False)


def test_a_second_session_on_a_weight_is_refused(gpt2, options, requests):
    model, tok = gpt2
    with Session(model, tok, **options, form="weight") as session:
        for other in (
            lambda: Session(model, tok, **options, form="weight"),
            lambda: rome_fast.edit(
                model, tok, requests[0], **{k: v for k, v in options.items() if k != "health"}
            ),
            lambda: session.log.apply(model),
        ):
            with pytest.raises(SessionError, match=r"is being edited by an open Session"):
                other()
        elsewhere = {**options, "hparams": options["hparams"].replace(layers=[0])}
        Session(model, tok, **elsewhere, form="weight").close()
    Session(model, tok, **options, form="weight").close()


def test_a_session_that_is_forgotten_lets_go(gpt2, options):
    model, tok = gpt2
    n_hooks = len(model._forward_pre_hooks)
    session = Session(model, tok, **options, form="weight")
    assert len(model._forward_pre_hooks) == n_hooks + 1
    del session
    gc.collect()
    assert len(model._forward_pre_hooks) == n_hooks
    Session(model, tok, **options, form="weight").close()


def test_a_closed_session_edits_nothing(gpt2, options, requests):
    model, tok = gpt2
    with Session(model, tok, **options, form="weight") as session:
        result = session.edit(requests[0])
    session.close()  # twice is once
    edited = state(model)
    uses = [
        lambda: session.edit(requests[1]), session.undo, result.revert, session.health,
        session.reading, session.__enter__,
    ]  # fmt: skip
    for use in uses:
        with pytest.raises(SessionError, match="the Session is closed"):
            use()
    assert same_bits(model, edited)


def test_a_weight_that_others_wrote_to_is_not_touched(gpt2_session, requests):
    session, model = gpt2_session
    session.edit(requests[0])
    with torch.no_grad():
        model.transformer.h[1].mlp.c_proj.weight.mul_(1.5)
    before = state(model)
    for use in (lambda: session.edit(requests[1]), session.undo):
        with pytest.raises(SessionError, match="was changed outside of the Session"):
            use()
    assert same_bits(model, before)


def test_a_weight_that_was_replaced_is_not_touched(gpt2_session, requests):
    session, model = gpt2_session
    model.transformer.h[1].mlp.c_proj.weight = torch.nn.Parameter(
        model.transformer.h[1].mlp.c_proj.weight.detach().clone()
    )
    with pytest.raises(SessionError, match="was replaced or cast outside of the Session"):
        session.edit(requests[0])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda model: weight_of(model).data.mul_(1.001), "was changed outside of the Session"),
        (lambda model: weight_of(model).data[0].zero_(), "was changed outside of the Session"),
        (lambda model: model.bfloat16(), "was replaced or cast outside of the Session"),
    ],
)
def test_a_write_that_torch_does_not_count_is_noticed(gpt2_session, requests, write, message):
    session, model = gpt2_session
    session.edit(requests[0])
    write(model)
    before = state(model)
    for use in (lambda: session.edit(requests[1]), session.undo):
        with pytest.raises(SessionError, match=message):
            use()
    assert same_bits(model, before)


def weight_of(model):
    return model.transformer.h[1].mlp.c_proj.weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_error_after_the_write_needs_no_memory_to_be_undone(
    gpt2, options, requests, monkeypatch, dtype
):
    model, tok = gpt2
    model.to(dtype)

    def no_memory(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with Session(model, tok, **options, form="weight") as session:
        session.edit(requests[0])
        before = state(model)
        monkeypatch.setattr(session._editor, "report", no_memory)
        monkeypatch.setattr("rome_fast.update.undo.WeightHistory._replayed", no_memory)
        with pytest.raises(torch.OutOfMemoryError):
            session.edit(requests[1])
        assert same_bits(model, before)
        monkeypatch.undo()
        session.edit(requests[1])


def test_a_weight_that_could_not_be_put_back_is_not_trusted(gpt2, options, requests, monkeypatch):
    def no_memory(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with Session(*gpt2, **options, form="weight", solve="sequential") as session:
        session.edit(requests[0])
        monkeypatch.setattr(session._editor, "report", no_memory)
        monkeypatch.setattr("rome_fast.update.undo.ops.rank_one_update_", no_memory)
        with pytest.raises(torch.OutOfMemoryError):
            session.edit(requests[1])
        monkeypatch.undo()
        with pytest.raises(SessionError, match="could not be put back after an error"):
            session.edit(requests[1])


def test_a_request_that_is_refused_before_a_write_costs_no_replay(
    gpt2_session, requests, monkeypatch
):
    session, _ = gpt2_session
    session.edit(requests[0])
    monkeypatch.setattr(session._ledger.history, "replay", None)
    with pytest.raises(InvalidRequestError):
        session.edit({**requests[1], "target_new": "river " * 600})


def test_an_edit_from_before_the_session_is_not_reverted_under_it(
    gpt2, options, settings, requests
):
    model, tok = gpt2
    outside = rome_fast.edit(model, tok, requests[0], **settings)
    with Session(model, tok, **options, form="weight") as session:
        before = state(model)
        with pytest.raises(SessionError, match="is being edited by an open Session"):
            outside.revert()
        assert same_bits(model, before)
        session.edit(requests[1])
        session.undo()
    outside.revert()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"retain": -1.0}, "retain must be a finite number >= 0, got -1.0"),
        ({"retain": float("inf")}, "retain must be a finite number"),
        ({"retain": True}, "retain must be a finite number >= 0, got True"),
        ({"retain": "x"}, "retain must be a finite number >= 0, got 'x'"),
        ({"retain": None}, "retain must be a finite number >= 0, got None"),
        ({"anchor": 1.5}, "anchor must be a whole number of 0 or more, got 1.5"),
        ({"guard": "shrink"}, "guard must be a Guard, got str"),
        ({"health": 5}, "health must be a HealthCheck, got int"),
    ],
)
def test_bad_options_are_named(gpt2, options, monkeypatch, change, message):
    model, tok = gpt2
    monkeypatch.setattr("rome_fast.editor.Editor.prepare", None)  # nothing is sampled before
    before = state(model)
    with pytest.raises(InvalidArgumentError, match=message):
        Session(model, tok, **{**options, **change}, form="weight")
    assert same_bits(model, before)
    assert not model._forward_pre_hooks
    monkeypatch.undo()
    Session(model, tok, **options, form="weight").close()  # nothing was kept


def test_the_weight_is_searched_with_adam_and_to_a_loss_of_its_own(gpt2, options):
    """What L-BFGS finds is larger, and costs other facts."""
    model, tok = gpt2
    others = {k: v for k, v in options.items() if k != "hparams"}
    given = options["hparams"].replace(solver="lbfgs", v_stop_loss=0.2)
    with Session(model, tok, **others, form="weight") as session:
        assert (session.hparams.solver, session.hparams.v_stop_loss) == ("adam", 0.3)
    with Session(model, tok, **others, hparams=given, form="weight") as session:
        assert (session.hparams.solver, session.hparams.v_stop_loss) == ("adam", 0.3)
    with Session(model, tok, **others, form="weight", stop_loss=0.2) as session:
        assert (session.hparams.solver, session.hparams.v_stop_loss) == ("adam", 0.2)


def test_a_bad_stop_loss_is_named(gpt2, options):
    model, tok = gpt2
    with pytest.raises(HparamsError, match=r"hparams\.v_stop_loss must be a finite number >= 0"):
        Session(model, tok, **options, stop_loss=-0.1, form="weight")


def test_half_precision_is_the_float32_sum_rounded_once(gpt2, options, requests):
    model, tok = gpt2
    weight = model.bfloat16().transformer.h[1].mlp.c_proj.weight
    total = weight.detach().float()
    with Session(model, tok, **options, form="weight") as session:
        for result in session.stream(requests, progress=False):
            total += result.update.dense()
    assert torch.equal(weight, total.bfloat16())


def test_rejections_do_not_stop_a_sequence(gpt2, options, requests):
    model, tok = gpt2
    long = {**requests[1], "target_new": "river " * 600}
    with Session(model, tok, **options, form="weight") as session:
        results = session.edit_many([requests[0], long, requests[2]], progress=False)
        assert [result.success for result in results] == [True, False, True]
        assert [result.edit_id for result in results] == [1, None, 2]
        assert isinstance(results[1], rome_fast.RejectedEdit)
        assert "REJECTED" in str(results[1])
        [rejection] = session.log.rejections
        assert rejection.request.subject == "Eiffel Tower"
        assert "InvalidRequestError" in rejection.reason
        assert [edit.edit_id for edit in session.log.edits] == [1, 2]


def test_a_bad_request_of_a_window_costs_the_others_nothing(gpt2, options, requests):
    model, tok = gpt2
    long = {**requests[1], "target_new": "river " * 600}
    with Session(model, tok, **options, form="weight") as session:
        results = list(
            session.edit_many([requests[0], long, requests[2]], order="independent", progress=False)
        )
        assert [result.success for result in results] == [True, False, True]
        assert isinstance(results[1].error, InvalidRequestError)
        assert not isinstance(results[1].error, EditRejectedError)


def test_defaults_sample_what_they_need(gpt2):
    model, tok = gpt2
    with Session(model, tok, form="weight") as session:
        assert session.log.base.edited
    assert HealthCheck().every == 50


def disk_full_at(session, monkeypatch, edit_id):
    """The journal refuses this edit, and those after it."""
    add = session._ledger.add

    def full(edits, keys):
        if edits[-1].edit_id >= edit_id:
            raise JournalError("the disk is full")
        add(edits, keys)

    monkeypatch.setattr(session._ledger, "add", full)


def test_an_error_in_a_window_hides_no_results(gpt2, options, requests, monkeypatch):
    model, tok = gpt2
    long = {**requests[2], "target_new": "river " * 600}
    with Session(model, tok, **options, form="weight") as session:
        disk_full_at(session, monkeypatch, 3)
        given = []
        stream = session.stream(
            [*requests[:2], long, *requests[3:5]], order="independent", progress=False
        )
        with pytest.raises(JournalError):
            for result in stream:
                given.append(result)
        assert [result.success for result in given] == [True, True, False]
        assert [edit.edit_id for edit in session.log.edits] == [1, 2]
        monkeypatch.undo()
        assert [result.edit_id for result in stream] == [3, 4]


def test_redo_after_a_window_that_failed_in_part(gpt2, options, requests):
    """Two edits of one fact would hold."""
    model, tok = gpt2
    long = {**requests[1], "target_new": "river " * 600}
    with Session(
        model, tok, **options, guard=rome_fast.Guard(action="stop"), form="weight"
    ) as session:
        session.edit(requests[0])
        session.undo()
        again = {**requests[0], "target_new": "near"}
        with pytest.raises(InvalidRequestError):
            session.edit_many([again, long], order="independent", progress=False)
        assert [edit.edit_id for edit in session.log.holding()] == [2]
        with pytest.raises(RevertError):
            session.redo()


def test_a_stream_does_not_edit_again_what_was_rolled_back(gpt2, options, requests):
    model, tok = gpt2
    check = HealthCheck(
        every=2, texts=["A short story about tea."], max_perplexity=0.0, on_unhealthy="rollback"
    )
    with Session(model, tok, **{**options, "health": check}, form="weight") as session:
        stream = session.stream(requests, progress=False)
        next(stream)
        for last in (2, 4, 6):
            with pytest.warns(SessionWarning), pytest.raises(UnhealthyError):
                list(stream)
            assert len(session.log.edits) == last
        assert list(stream) == []
    assert [edit.request.subject for edit in session.log.edits] == [r["subject"] for r in requests]


def test_a_rejection_keeps_no_tensors_alive(gpt2, options, requests):
    model, tok = gpt2
    with Session(model, tok, **options, form="weight") as session:
        model.transformer.h[3].mlp.c_fc.weight.data[0, 0] = math.inf
        [rejected] = session.edit_many(requests[:1], progress=False)
    error = rejected.error
    assert isinstance(error, NonFiniteError)
    while error is not None:
        assert error.__traceback__ is None
        error = error.__cause__ or error.__context__
