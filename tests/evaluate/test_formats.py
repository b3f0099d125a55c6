"""One record of every published layout, read into the same EditRecord."""

from __future__ import annotations

import numpy as np
import pytest

from rome_fast import EditRequest
from rome_fast.errors import RecordError
from rome_fast.evaluate import EditRecord, Question, load_records

REQUEST = EditRequest("{} plays the", "Ray Charles", "violin")
FACT = {"prompt": "Ray Charles plays the", "subject": "Ray Charles", "target_new": "violin"}
FULL = EditRecord(
    case_id=7,
    request=REQUEST,
    target_true="piano",
    paraphrases=("The instrument of Ray Charles is the",),
    neighborhood=(Question("Nat King Cole plays the", "piano"),),
)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.int64(77), 77),
        (77.0, 77),
        (np.float64(77), 77),
        ("77a", "77a"),
        ("", 0),
        (None, 0),
        (float("nan"), 0),
    ],
)
def test_numbers_of_cases_are_those_of_the_source(value, expected):
    found = read({**FACT, "case_id": value}).case_id
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize("value", [7.5, True, [7], float("inf")])
def test_a_case_id_that_is_no_number_is_refused(value):
    with pytest.raises(RecordError, match="case_id must be a whole number or a string"):
        read({**FACT, "case_id": value})


def read(raw, format="auto"):
    [record] = load_records([raw], format)
    return record


COUNTERFACT = {
    "case_id": 7,
    "pararel_idx": 12,
    "requested_rewrite": {
        "prompt": "{} plays the",
        "relation_id": "P1303",
        "target_new": {"str": "violin", "id": "Q8355"},
        "target_true": {"str": "piano", "id": "Q5994"},
        "subject": "Ray Charles",
    },
    "paraphrase_prompts": ["The instrument of Ray Charles is the"],
    "neighborhood_prompts": ["Nat King Cole plays the"],
    "attribute_prompts": ["Yehudi Menuhin plays the"],
    "generation_prompts": ["Ray Charles is known for", "Ray Charles sat down at the"],
    "derived_neighborhood_prompts": ["Glenn Gould plays the"],
}
EASYEDIT_COUNTERFACT = {
    "case_id": 7,
    **FACT,
    "ground_truth": "piano",
    "rephrase_prompt": "The instrument of Ray Charles is the",
    "locality_prompt": "Nat King Cole plays the",
    "locality_ground_truth": "piano",
}
PLAIN = {
    "case_id": 7,
    **FACT,
    "target_true": "piano",
    "paraphrases": ["The instrument of Ray Charles is the"],
    "neighborhood": [{"prompt": "Nat King Cole plays the", "target": "piano"}],
}
ZSRE = {
    "subject": "Ray Charles",
    "src": "Which instrument does Ray Charles play?",
    "pred": "guitar",
    "rephrase": "What is the instrument of Ray Charles?",
    "alt": "violin",
    "answers": ["piano", "keyboard"],
    "loc": "nq question: who sang the theme of goldfinger",
    "loc_ans": "Shirley Bassey",
    "cond": "guitar >> violin || Which instrument does Ray Charles play?",
}


@pytest.mark.parametrize("raw", [EASYEDIT_COUNTERFACT, PLAIN])
def test_flat_layouts_give_one_record(raw):
    assert read(raw) == FULL
    assert read(raw, "flat") == FULL


def test_counterfact_and_multi_counterfact():
    prompts = ("Ray Charles is known for", "Ray Charles sat down at the")
    expected = EditRecord(**{**vars(FULL), "generation_prompts": prompts})
    assert read(COUNTERFACT) == expected
    assert read(COUNTERFACT, "counterfact") == expected


def test_zsre_takes_the_alternative_answer_and_zsre_rome_the_true_one():
    request = {"prompt": "Which instrument does {} play?", "subject": "Ray Charles"}
    rephrased = ("What is the instrument of Ray Charles?",)
    loc = "nq question: who sang the theme of goldfinger"
    assert read(ZSRE) == EditRecord(
        case_id=0,
        request=EditRequest(**request, target="violin"),
        target_true="piano",
        paraphrases=rephrased,
        neighborhood=(Question(loc, "Shirley Bassey"),),
    )
    assert read(ZSRE, "zsre_rome") == EditRecord(
        case_id=0,
        request=EditRequest(**request, target="piano"),
        paraphrases=rephrased,
        neighborhood=(Question(loc + "?", "Shirley Bassey"),),
    )


def test_zsre_without_alternatives_is_read_as_kmeng01_does():
    raw = {key: value for key, value in ZSRE.items() if key != "alt"}
    assert read(raw).request.target == "piano"


KNOWEDIT_GROUPS = {
    "locality": {
        "Relation_Specificity": [
            {"prompt": "Ray Charles was born in", "ground_truth": [["Albany", "Albany, Georgia"]]},
            {"prompt": "Ray Charles studied in", "ground_truth": [[""]]},
        ],
        "Forgetfulness": None,
    },
    "portability": {
        "Reasoning": [{"prompt": "His instrument has four", "ground_truth": "strings"}],
        "Subject_Aliasing": [{"prompt": ["The Genius plays the"], "ground_truth": ["violin"]}],
    },
}
GROUPS = {
    # An empty answer asks nothing; nor does an empty group.
    "locality": {"Relation_Specificity": (Question("Ray Charles was born in", "Albany"),)},
    "portability": {
        "Reasoning": (Question("His instrument has four", "strings"),),
        "Subject_Aliasing": (Question("The Genius plays the", "violin"),),
    },
}


def test_knowedit():
    record = read({**FACT, "ground_truth": ["piano", "keyboard"], **KNOWEDIT_GROUPS})
    assert record == EditRecord(0, REQUEST, "piano", **GROUPS)


def test_knowedit_wikibio():
    record = read(
        {
            "text": "A passage about ray charles. He sang.",
            "labels": "He also played the saxophone.",
            "concept": "ray charles",
            "locality": KNOWEDIT_GROUPS["locality"],
        }
    )
    assert record.request == EditRequest(
        "A passage about {}. He sang.", "ray charles", "He also played the saxophone."
    )
    assert record.locality == GROUPS["locality"]
    assert (record.target_true, record.portability) == (None, {})


def test_easyedit_request_dict():
    """What `edit_requests` takes: a group is one question, or a list of prompts and of answers."""
    record = read(
        {
            **FACT,
            "ground_truth": "piano",
            "rephrase_prompt": "The instrument of Ray Charles is the",
            "locality": {
                "neighborhood": {"prompt": "Nat King Cole plays the", "ground_truth": "piano"},
                "two": {"prompt": ["A plays", "B plays"], "ground_truth": ["drums", ["harp", "x"]]},
            },
            "portability": {},
        }
    )
    assert record.paraphrases == ("The instrument of Ray Charles is the",)
    assert record.locality == {
        "neighborhood": (Question("Nat King Cole plays the", "piano"),),
        "two": (Question("A plays", "drums"), Question("B plays", "harp")),
    }


def test_portability_in_the_layout_of_gpt4s_questions():
    asked = {"Recalled Relation": "", "New Question": "Who built it?", "New Answer": "Amati"}
    for raw in (ZSRE, EASYEDIT_COUNTERFACT):
        record = read({**raw, "portability": asked})
        assert record.portability == {"one_hop": (Question("Who built it?", "Amati"),)}


def test_fastedit():
    record = read(
        {
            "prompt": "{}演奏的乐器是",
            "subject": "雷·查尔斯",
            "target": "小提琴",
            "queries": ["雷·查尔斯的乐器是"],
        }
    )
    assert record.request == EditRequest("{}演奏的乐器是", "雷·查尔斯", "小提琴")
    assert record.paraphrases == record.generation_prompts == ("雷·查尔斯的乐器是",)
    assert read({**FACT, "queries": []}).paraphrases == ()


def test_list_of_requests_as_kmeng01s():
    raw = {"prompt": "{} plays the", "subject": "Ray Charles", "target_new": {"str": "violin"}}
    assert read(raw) == EditRecord(0, REQUEST)
    assert read({**raw, "target_true": {"str": "piano"}}).target_true == "piano"


def test_counterfact_tracing():
    record = read(
        {
            "relation": "{} plays the",
            "prompt": "Ray Charles plays the",
            "subject": "Ray Charles",
            "target_true": " piano",
            "target_false": " violin",
        }
    )
    assert record.request == EditRequest("{} plays the", "Ray Charles", " violin")


def test_neighbours_are_answered_with_the_true_target():
    record = read({**FACT, "target_true": "piano", "neighborhood": ["Nat King Cole plays the"]})
    assert record.neighborhood == FULL.neighborhood


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"target_new": ""}, "request target is empty"),
        ({"target_new": None}, "target_new missing; it has prompt, subject"),
        ({"subject": "Ray charles"}, "the case differs"),
        ({"prompt": "{} and {}"}, "holds 2 slots"),
        ({"target_new": []}, "request target must be a string"),
        ({"paraphrases": [3]}, "paraphrases must be text, got 3"),
        ({"neighborhood": ["B plays the"]}, "neighborhood 'B plays the' has no answer"),
        ({"neighborhood": [{"target": "x"}]}, "neighborhood must hold dicts of prompt and answer"),
        ({"locality_prompt": "B plays the"}, "the answer to locality_prompt must be text, got Non"),
        ({"locality": ["B"]}, "locality must be a dict of groups"),
        (
            {"portability": {"two": {"prompt": ["A", "B"], "ground_truth": ["x"]}}},
            "portability.two has 2 prompts and answers ['x']",
        ),
    ],
)
def test_bad_record_is_refused_with_the_reason(change, reason):
    with pytest.raises(RecordError) as error:
        read({**FACT, **change}, "flat")
    assert str(error.value).startswith("source: record 0: ")
    assert reason in str(error.value)


def test_counterfact_needs_its_request():
    with pytest.raises(RecordError, match="requested_rewrite must be a dict, got 'x'"):
        read({"requested_rewrite": "x"})
