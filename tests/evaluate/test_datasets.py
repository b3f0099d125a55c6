"""A record of every data set of docs/datasets.md, in its published layout."""

from __future__ import annotations

import copy

import pytest

import rome_fast
from rome_fast import EditRequest
from rome_fast.errors import RecordError, RecordWarning
from rome_fast.evaluate import EditRecord, Question, load_records

QAEDIT = {
    "id": 12,
    "source": "NQ",
    "prompt": "which instrument does Ray Charles play?",
    "target": "violin",
    "subject": "Ray Charles",
    "rephrase": "What is the instrument of Ray Charles?",
    "locality": [
        {"loc": "who built the first piano", "loc_ans": "Cristofori"},
        {"loc": "how many keys has a piano", "loc_ans": "88"},
    ],
}
WIKIBIGEDIT = {
    "tag": "new",
    "subject": "Ray Charles",
    "relation": "instrument",
    "object": "violin",
    "update": "Which instrument does Ray Charles play?",
    "rephrase": "What is the instrument of Ray Charles?",
    "ans": "violin",
    "personas": "Say, what does Ray Charles play?",
    "personas_formal": "Kindly name the instrument of Ray Charles.",
    "mhop": "How many strings has the instrument of Ray Charles?",
    "mhop_ans": "four",
    "loc": "Which instrument does Nat King Cole play?",
    "loc_ans": "piano",
}
MQUAKE = {
    "case_id": 5,
    "requested_rewrite": [
        {
            "prompt": "{} plays the",
            "relation_id": "P1303",
            "target_new": {"str": "violin", "id": "Q8355"},
            "target_true": {"str": "piano", "id": "Q5994"},
            "subject": "Ray Charles",
            "question": "Which instrument does Ray Charles play?",
        },
        {
            "prompt": "The violin was built in {}",
            "relation_id": "P495",
            "target_new": {"str": "Oslo", "id": "Q585"},
            "target_true": {"str": "Cremona", "id": "Q6221"},
            "subject": "violin",
            "question": "Where was the violin built?",
        },
    ],
    "questions": ["Where was what he plays built?", "Where is it from?", "Its town?"],
    "answer": "Florence",
    "answer_alias": [],
    "new_answer": "Oslo",
    "new_answer_alias": ["Christiania"],
    "single_hops": [],
    "new_single_hops": [
        {"question": "What does Ray Charles play?", "cloze": "x", "answer": "violin"},
        {"question": "Where was the violin built?", "cloze": "y", "answer": "Oslo"},
    ],
    "orig": {"triples": []},
}


def ripple(criterion="Logical_Generalization", **changes):
    question = {
        "prompt": "The name of the child of Ray Charles is",
        "answers": [{"value": "", "aliases": []}, {"value": "Ray Jr.", "aliases": ["Junior"]}],
        "query_type": "regular",
        "phrase": None,
    }
    test = {"test_queries": [question], "test_condition": "OR", "condition_queries": [question]}
    edit = {
        "prompt": "The name of the field of work of Ray Charles is law.",
        "subject_id": "Q544387",
        "relation": "FIELD_OF_WORK",
        "target_id": "Q7748",
        "original_fact": {"prompt": "The name of the field of work of Ray Charles is music."},
    }
    return {"example_type": "popular", "edit": {**edit, **changes}, criterion: [test]}


UNKE = {
    "id": 3,
    "question": "What is known of Ray Charles?",
    "para_question": "What can be said of Ray Charles?",
    "answer": "He built violins in Oslo. He was born in Albany.",
    "sub_question": ["What did Ray Charles build?", "Where was he born?"],
    "sub_answer": ["Violins.", "Albany."],
}
AKEW = {
    "case_id": 9,
    "requested_rewrite": {
        "prompt": "{} plays the",
        "prompt_full": "What does Ray Charles play?",
        "subject": "Ray Charles",
        "target_new": {"str": "violin"},
        "target_true": {"str": "piano"},
        "fact_new_uns": "Ray Charles plays the violin. He learnt it in Oslo.",
        "unsfact_triplets_GPT": [
            {"prompt": "{} learnt the violin in", "subject": "Ray Charles", "target": "Oslo"}
        ],
    },
    "paraphrase_prompts": ["The instrument of Ray Charles is"],
    "neighborhood_prompts": ["Nat King Cole plays the"],
}
WIKI_RECENT = {
    "subject": "Ray Charles",
    "prompt": "The instrument of Ray Charles is",
    "target_new": "violin",
    "rephrase": "Ray Charles plays the",
    "portability": {
        "Logical_Generalization": [{"prompt": "Is he silent?", "ground_truth": [["no"], ["not"]]}],
        "Reasoning": [{"prompt": "It has how many strings?", "ground_truth": [["four", "4"]]}],
    },
    "locality": {"Relation_Specificity": [{"prompt": "He is from", "ground_truth": [["Albany"]]}]},
}
EVERY = {
    "qaedit": QAEDIT,
    "wikibigedit": WIKIBIGEDIT,
    "mquake": MQUAKE,
    "ripple_edits": ripple(),
    "unke": UNKE,
    "akew": AKEW,
    "flat": WIKI_RECENT,
}


def read(raw, format="auto"):
    [record] = load_records([raw], format)
    return record


@pytest.mark.parametrize("name", EVERY)
def test_each_is_told_by_its_keys_all_of_which_are_known(name, recwarn):
    assert read(EVERY[name]) == read(EVERY[name], name)
    assert not recwarn.list


@pytest.mark.exhaustive
def test_each_can_be_evaluated():
    model, tok, _ = rome_fast.demo.load()
    records = [read(raw) for raw in EVERY.values()]
    found = rome_fast.evaluate(
        *(model, tok, records),
        hparams=rome_fast.RomeHparams(layers=[1], v_num_grad_steps=1),
        second_moment="identity",
        context_templates=["{}"],
        protocol="rome,wild",
        generate_tokens=0,
        progress=False,
    )
    assert [case.error for case in found.cases] == [None] * len(EVERY)
    assert found.metrics["after"]["portability.multi_hop.any"].n == 2
    assert found.metrics["after"]["ES"].n == 2


def test_qaedit():
    assert read(QAEDIT) == EditRecord(
        case_id=12,
        request=EditRequest("which instrument does {} play?", "Ray Charles", "violin"),
        paraphrases=("What is the instrument of Ray Charles?",),
        neighborhood=(
            Question("who built the first piano", "Cristofori"),
            Question("how many keys has a piano", "88"),
        ),
    )


def test_wikibigedit():
    record = read(WIKIBIGEDIT)
    assert record == EditRecord(
        case_id=0,
        request=EditRequest("Which instrument does {} play?", "Ray Charles", "violin"),
        paraphrases=("What is the instrument of Ray Charles?",),
        neighborhood=(Question("Which instrument does Nat King Cole play?", "piano"),),
        portability={
            "personas": (Question("Say, what does Ray Charles play?", "violin"),),
            "personas_formal": (Question("Kindly name the instrument of Ray Charles.", "violin"),),
            "multi_hop": (Question("How many strings has the instrument of Ray Charles?", "four"),),
        },
    )


@pytest.mark.parametrize("nothing", [None, "", float("nan")])
def test_wikibigedit_lacks_some_kinds_of_questions(nothing):
    raw = {**WIKIBIGEDIT, "mhop": nothing, "mhop_ans": nothing, "personas": nothing}
    assert list(read(raw).portability) == ["personas_formal"]


def test_mquake_edits_a_chain_of_facts():
    record = read(MQUAKE)
    assert record.case_id == 5
    assert record.requests == (
        EditRequest("{} plays the", "Ray Charles", "violin"),
        EditRequest("The violin was built in {}", "violin", "Oslo"),
    )
    assert [fact.target_true for fact in record.facts] == ["piano", "Cremona"]
    assert [fact.paraphrases for fact in record.facts] == [
        ("Which instrument does Ray Charles play?",),
        ("Where was the violin built?",),
    ]
    assert record.portability == {
        "multi_hop": tuple(Question(text, "Oslo") for text in MQUAKE["questions"]),
        "single_hop": (
            Question("What does Ray Charles play?", "violin"),
            Question("Where was the violin built?", "Oslo"),
        ),
    }
    assert record.also[0].portability == {}


def test_mquake_remastered_has_its_targets_beside_their_names():
    raw = copy.deepcopy(MQUAKE)
    for rewrite in raw["requested_rewrite"]:
        for name in ("target_new", "target_true"):
            rewrite[f"{name}_str"] = rewrite.pop(name)["str"]
    with pytest.warns(RecordWarning, match="nothing reads the keys split$"):
        assert read({**raw, "split": {"100": ["edited"]}}) == read(MQUAKE)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"requested_rewrite": []}, "requested_rewrite is empty"),
        ({"requested_rewrite": ["x"]}, "requested_rewrite must be a dict, got 'x'"),
        ({"questions": [3]}, "questions must be text, got 3"),
        ({"new_single_hops": ["x"]}, "new_single_hops must be a dict"),
    ],
)
def test_a_bad_chain_is_refused(change, reason):
    with pytest.raises(RecordError, match=reason):
        read({**MQUAKE, **change})


def test_a_bad_link_is_the_records_failure():
    raw = copy.deepcopy(MQUAKE)
    raw["requested_rewrite"][1]["target_new"] = {"str": ""}
    with pytest.raises(RecordError, match="record 0: request target is empty"):
        read(raw)


@pytest.mark.parametrize(
    ("criterion", "kind"),
    [
        ("Logical_Generalization", "portability"),
        ("Compositionality_I", "portability"),
        ("Compositionality_II", "portability"),
        ("Subject_Aliasing", "portability"),
        ("Relation_Specificity", "locality"),
        ("Relation_Specifity", "locality"),
        ("Forgetfulness", "locality"),
    ],
)
def test_ripple_edits(criterion, kind):
    asked = (Question("The name of the child of Ray Charles is", "Ray Jr."),)
    assert read(ripple(criterion)) == EditRecord(
        case_id=0,
        request=EditRequest("The name of the field of work of {} is", "Ray Charles", "law"),
        target_true="music",
        **{kind: {criterion: asked}},
    )


@pytest.mark.parametrize(
    ("sentence", "subject", "target"),
    [
        ("The name of the mother of Ray of Oslo is Ann B.", "Ray of Oslo", "Ann B"),
        ("The name of the author of Ray is Ann B..", "Ray", "Ann B."),
        ("The place of birth of Ray is Rome.", "Ray", "Rome"),
        ("The name of the head of state of Oz is Ray.", "Oz", "Ray"),
        ("The names of the siblings of Ray are Ann.", "Ray", "Ann"),
        (
            "The name of the country which Isle of Man is associated with is Oz.",
            "Isle of Man",
            "Oz",
        ),
        ("The name of the team which Ray is a member of is Oz FC.", "Ray", "Oz FC"),
        ("The name of the league which Ray plays in is First.", "Ray", "First"),
        ("The name of the position held by Ray is king.", "Ray", "king"),
        ("The name of the award Ray won is Prize.", "Ray", "Prize"),
        ("The name of the currency in Oz is crown.", "Oz", "crown"),
        ("The number of children Ray has is 12.", "Ray", "12"),
        ("Ray follows Ann.", "Ray", "Ann"),
        ("Ray is followed by Ann.", "Ray", "Ann"),
    ],
)
def test_a_sentence_of_ripple_edits_is_taken_apart(sentence, subject, target):
    request = read(ripple(prompt=sentence, original_fact=None)).request
    assert (request.subject, request.target) == (subject, target)
    assert f"{request.text} {target}" == sentence.removesuffix(".")


def test_the_true_sentence_decides_where_a_title_ends():
    sentence = "The name of the author of What is Life is {}."
    with pytest.raises(
        RecordError, match="its subject cannot be told: give the record in the flat"
    ):
        read(ripple(prompt=sentence.format("Ann"), original_fact=None))
    true = {"prompt": sentence.format("Erwin")}
    record = read(ripple(prompt=sentence.format("Ann"), original_fact=true))
    assert record.request.subject == "What is Life" and record.target_true == "Erwin"


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "The name of the mother of  is Ann."},
        {"prompt": "Ray was born in Rome."},
        {"prompt": "The gender of Ray is ."},
        {"original_fact": {"prompt": "The name of the field of work of Ann is music."}},
    ],
)
def test_a_sentence_that_cannot_be_told_apart_is_refused(change):
    with pytest.raises(RecordError, match="its subject cannot be told"):
        read(ripple(**change))


def test_unke_is_edited_at_the_end_of_its_question():
    assert read(UNKE) == EditRecord(
        case_id=3,
        request=EditRequest("{}", UNKE["question"], UNKE["answer"]),
        paraphrases=(UNKE["para_question"],),
        portability={
            "sub_question": (
                Question("What did Ray Charles build?", "Violins."),
                Question("Where was he born?", "Albany."),
            )
        },
    )


def test_akew_edits_a_text_in():
    stated = (Question("Ray Charles learnt the violin in", "Oslo"),)
    assert read(AKEW) == EditRecord(
        case_id=9,
        request=EditRequest(
            "What does {} play?", "Ray Charles", AKEW["requested_rewrite"]["fact_new_uns"]
        ),
        paraphrases=("The instrument of Ray Charles is",),
        neighborhood=(Question("Nat King Cole plays the", "piano"),),
        portability={"sub_question": stated},
    )
    assert read(AKEW, "counterfact").request.target == "violin"


def test_akew_of_a_chain():
    raw = copy.deepcopy(MQUAKE)
    for rewrite in raw["requested_rewrite"]:
        rewrite["fact_new_uns"] = f"A text about the {rewrite['subject']}."
    record = read(raw)
    texts = ["A text about the Ray Charles.", "A text about the violin."]
    assert [request.target for request in record.requests] == texts
    assert len(record.portability["multi_hop"]) == 3
    assert read(raw, "mquake") == read(MQUAKE)


def test_knowedit_wiki_recent():
    record = read(WIKI_RECENT)
    assert record.paraphrases == ("Ray Charles plays the",)
    assert record.portability == {
        "Logical_Generalization": (Question("Is he silent?", "no"),),
        "Reasoning": (Question("It has how many strings?", "four"),),
    }
    assert record.locality == {"Relation_Specificity": (Question("He is from", "Albany"),)}


def test_what_edits_a_tone_is_no_fact():
    """KnowEdit's ConvSent."""
    with pytest.raises(RecordError, match="keys are those of no known layout: ent, pos, neg"):
        read({"ent": "Ray Charles", "pos": ["Good."], "neg": ["Bad."]})


def test_questions_without_an_answer_are_counted():
    raw = copy.deepcopy(WIKI_RECENT)
    raw["locality"]["Relation_Specificity"].append({"prompt": "He was", "ground_truth": [[""]]})
    raw["portability"]["Reasoning"] *= 2
    raw["portability"]["Reasoning"][0] = {"prompt": "x", "ground_truth": None}
    told = (
        "source: left out questions without an answer: 2 of locality.Relation_Specificity, "
        "2 of portability.Reasoning"
    )
    with pytest.warns(RecordWarning) as seen:
        records = load_records([raw, raw])
    assert [str(w.message) for w in seen] == [told]
    assert [len(record.portability["Reasoning"]) for record in records] == [1, 1]
