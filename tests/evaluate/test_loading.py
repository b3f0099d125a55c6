"""Records from files, lists and data sets: lines, bad records, and layouts that nobody knows."""

from __future__ import annotations

import csv
import gzip
import json
import sys
import warnings

import datasets
import pytest
from shared_data import shared

from rome_fast import EditRequest, demo
from rome_fast.errors import InvalidArgumentError, RecordError, RecordWarning
from rome_fast.evaluate import EditRecord, Question, load_records

NAMES = ("Ada", "Ben", "Cleo", "Dan")
RAW = [{"prompt": "{} lives in", "subject": name, "target_new": "Rome"} for name in NAMES]
RECORDS = [EditRecord(i, EditRequest("{} lives in", n, "Rome")) for i, n in enumerate(NAMES)]


def written(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def lines(items):
    return "".join(f"{item if isinstance(item, str) else json.dumps(item)}\n" for item in items)


def test_json_jsonl_csv_and_gz_hold_the_same_records(tmp_path):
    table = tmp_path / "facts.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, RAW[0])
        writer.writeheader()
        writer.writerows(RAW)
    packed = tmp_path / "facts.jsonl.gz"
    packed.write_bytes(gzip.compress(lines(RAW).encode()))
    for source in (
        written(tmp_path / "facts.json", json.dumps(RAW)),
        str(written(tmp_path / "facts.jsonl", lines(RAW))),
        table,
        packed,
        RAW,
        iter(RAW),
        datasets.Dataset.from_list(RAW),
    ):
        assert load_records(source) == RECORDS


def test_csv_cells_may_hold_lists_line_ends_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "facts.csv"
    path.write_text(
        "\ufeffprompt,subject,target,target_true,paraphrases,neighborhood,case_id\n"
        '"{} lives\nin",Ada,Rome,Bonn,"[""A"", ""B""]",'
        '"[{""prompt"": ""P"", ""target"": ""T""}]",\n'
        "[x] {} lives in,Ben,Oslo,Bonn,one,,b7\n",
        encoding="utf-8",
    )
    first, second = load_records(path)
    assert first == EditRecord(
        case_id=0,
        request=EditRequest("{} lives\nin", "Ada", "Rome"),
        target_true="Bonn",
        paraphrases=("A", "B"),
        neighborhood=(Question("P", "T"),),
    )
    assert second == EditRecord(
        "b7", EditRequest("[x] {} lives in", "Ben", "Oslo"), "Bonn", ("one",)
    )


BAD = {**RAW[2], "subject": ""}


def test_bad_record_raises_with_its_index_and_line(tmp_path):
    path = written(tmp_path / "facts.jsonl", lines([RAW[0], "", RAW[1], BAD, RAW[3]]))
    with pytest.raises(RecordError) as error:
        load_records(path)
    assert str(error.value) == "facts.jsonl: record 2 (line 4): request subject is empty: ''"
    with pytest.raises(RecordError, match=r"^source: record 1: request subject is empty"):
        load_records([RAW[0], BAD])


def test_skip_reports_every_reason_in_one_warning(tmp_path):
    path = written(tmp_path / "facts.jsonl", lines([RAW[0], "{nonsense", '"x"', BAD, RAW[1]]))
    with pytest.warns(RecordWarning) as caught:
        records = load_records(path, on_error="skip")
    assert records == [RECORDS[0], EditRecord(4, RECORDS[1].request)]
    [message] = [str(warning.message) for warning in caught]
    assert message.startswith(
        "facts.jsonl: left out 3 of 5 records: record 1 (line 2): the line is"
    )
    assert "record 2 (line 3): a dict is needed, got str: 'x'" in message
    assert "record 3 (line 4): request subject is empty" in message


def test_skip_shortens_a_long_list_and_refuses_nothing_but_bad_ones():
    with pytest.warns(RecordWarning, match=r"left out 14 of 15 .* record 9: .*; and 4 more$"):
        load_records([BAD] * 14 + RAW[:1], format="flat", on_error="skip")
    with pytest.raises(
        RecordError, match="all 2 records are bad, the first one: record 0: request"
    ):
        load_records([BAD, BAD], format="flat", on_error="skip")


def test_csv_reports_bad_rows_with_their_lines(tmp_path):
    text = 'prompt,subject,target,queries\n"{} lives\nin",Ada,Rome,\n{} eats,Ben,figs,,too many\n'
    path = written(tmp_path / "facts.csv", text)
    with pytest.raises(RecordError, match=r"record 1 \(line 4\): it has more cells than"):
        load_records(path)
    path = written(tmp_path / "facts.csv", "prompt,subject,target,queries\n{} eats,Ben,figs,[x\n")
    with pytest.raises(RecordError, match=r"record 0 \(line 2\): column queries is not JSON"):
        load_records(path)
    path = written(tmp_path / "facts.csv", "prompt,subject,target\n{} eats,Ben\n")
    with pytest.raises(RecordError, match="target_new missing; it has prompt, subject"):
        load_records(path)


def test_limit_stops_reading_at_that_many_good_records():
    def endless():
        yield BAD
        yield from RAW
        raise AssertionError("read beyond the limit")

    with pytest.warns(RecordWarning, match="left out 1 of 4"):
        assert len(load_records(endless(), "flat", on_error="skip", limit=3)) == 3


def test_first_recognised_record_decides_the_layout():
    other = {"requested_rewrite": RAW[0]}
    with pytest.raises(
        RecordError, match="record 1: prompt, subject, target_new missing; it has requested"
    ):
        load_records([RAW[0], other])
    with pytest.warns(RecordWarning, match="record 0: its keys are those of no known layout: a"):
        assert load_records([{"a": 1}, RAW[1]], on_error="skip")[0].request.subject == "Ben"


def test_unknown_layout_lists_what_is_seen_and_what_is_known():
    with pytest.raises(RecordError) as error:
        load_records([{"question": "?", "reply": "!"}])
    for wanted in ("no known layout: question, reply", "counterfact (requested_rewrite)", "zsre"):
        assert wanted in str(error.value)


def test_ready_records_and_requests_are_taken_as_they_are():
    record = EditRecord("x", EditRequest("{} lives in", "Eve", "Oslo"))
    assert load_records([record, RECORDS[1].request]) == [record, RECORDS[1]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "nope"}, r"format must be one of \['auto', .*'counterfact', .* got 'nope'"),
        ({"on_error": "ignore"}, "on_error must be 'raise' or 'skip', got 'ignore'"),
        ({"limit": 0}, "limit must be a whole number of 1 or more, got 0"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(InvalidArgumentError, match=message):
        load_records(RAW, **options)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("facts.txt", "", "must end in .json, .jsonl, .csv, .tsv, with or without .gz, or in"),
        ("facts.json", '{"success": [], "locality": []}', "one dict with keys success, locality"),
        ("facts.json", lines(RAW), r"Extra data: .* \(one record a line\? Then name it .jsonl\)"),
        ("facts.json", "[", "the file is not JSON"),
        ("facts.json", "[]", "facts.json holds no records"),
        ("facts.jsonl.gz", "not packed", "facts.jsonl.gz cannot be read: Not a gzipped file"),
    ],
)
def test_unreadable_files(tmp_path, name, text, message):
    with pytest.raises(InvalidArgumentError, match=message):
        load_records(written(tmp_path / name, text))


def test_file_that_is_not_utf8(tmp_path):
    path = tmp_path / "facts.csv"
    path.write_bytes("prompt,subject,target\n{} trinkt,Jörg,Tee\n".encode("latin-1"))
    with pytest.raises(InvalidArgumentError, match=r"facts\.csv is not UTF-8: 'utf-8' codec"):
        load_records(path)
    path.write_bytes("prompt,subject,target\n".encode("utf-16"))
    with pytest.raises(InvalidArgumentError, match=r"facts\.csv is UTF-16: save it as UTF-8"):
        load_records(path)


def test_a_column_may_say_that_no_space_stands_before_the_target(tmp_path):
    text = "prompt,subject,target,space\n{} is,Ada,x,TRUE\n{} is,Ada,x,false\n{} is,Ada,x,\n"
    found = load_records(written(tmp_path / "facts.csv", text))
    assert [record.request.space for record in found] == [True, False, None]
    assert [record.rewrite.space for record in found] == [True, False, None]
    with pytest.raises(InvalidArgumentError, match="space must be true, false or nothing, got 3"):
        load_records([{"prompt": "{} is", "subject": "Ada", "target": "x", "space": 3}])


def test_sources_that_are_none():
    with pytest.raises(InvalidArgumentError, match=r"there is no file 'data/absent.json'"):
        load_records("data/absent.json")
    with pytest.raises(InvalidArgumentError, match="got int"):
        load_records(3)
    with pytest.raises(InvalidArgumentError, match="mapping with keys 'train', 'test'"):
        load_records(datasets.DatasetDict({"train": 1, "test": 2}))


def test_hub_name_is_read_with_datasets(monkeypatch):
    splits = {"train": datasets.Dataset.from_list(RAW)}
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name: asked.append(name) or splits)
    assert load_records("owner/facts", limit=2) == RECORDS[:2]
    assert asked == ["owner/facts"]
    splits["test"] = splits["train"]
    with pytest.raises(InvalidArgumentError, match="has the splits train, test: pass datasets"):
        load_records("owner/facts")


def test_hub_errors_and_a_missing_library_name_the_remedy(monkeypatch):
    def fail(name):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(
        InvalidArgumentError, match="no file 'owner/facts', and as a hub name: no n"
    ):
        load_records("owner/facts")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InvalidArgumentError, match=r"pip install 'rome-fast\[data\]'"):
        load_records("owner/facts")


def test_facts_of_the_demo_model_are_records():
    facts = demo.load_facts()
    records = [fact.record() for fact in facts]
    assert len(records) == len(facts) == 1549
    [ray] = [record for record in records if record.request.subject == "Ray Charles"]
    assert ray.request == EditRequest("{} plays the", "Ray Charles", "violin")
    assert (ray.target_true, len(ray.paraphrases) >= 2) == ("piano", True)
    fact = facts[ray.case_id]
    assert [(q.prompt, q.target) for q in ray.neighborhood] == [
        (item.prompt, item.target) for item in fact.neighborhood_prompts
    ]


def test_both_layouts_of_the_real_counterfact_give_the_same_4000_records():
    rome = load_records(shared("counterfact/counterfact-rome.json"))
    easyedit = load_records(shared("counterfact/counterfact-easyedit.json"))
    assert len(rome) == 4000
    assert [EditRecord(**{**vars(record), "generation_prompts": ()}) for record in rome] == easyedit
    assert sum(map(len, (record.generation_prompts for record in rome))) > 0


def test_real_zsre_has_two_records_without_an_alternative_answer():
    path = shared("zsre/zsre_mend_train-1k.json")
    with pytest.warns(RecordWarning) as caught:
        records = load_records(path, on_error="skip")
    assert len(records) == 998
    assert str(caught[0].message).count("request target is empty") == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_records(path, "zsre_rome")) == 1000


def test_keys_that_nothing_reads_are_named_once():
    records = [{**raw, "source": "web", "Prompt": "x"} for raw in RAW]
    with pytest.warns(RecordWarning) as seen:
        assert load_records(records) == RECORDS
    assert [str(w.message) for w in seen] == ["source: nothing reads the keys source, Prompt"]
