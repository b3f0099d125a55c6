"""Texts in every form that a user has them in."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rome_fast.errors import InvalidArgumentError
from rome_fast.moment.collect.corpus import Corpus
from rome_fast.prompt.ids import text_ids


@pytest.fixture
def corpus(tiny):
    _, tok = tiny

    def make(texts, **options):
        return Corpus(texts, tok, len(tok), **options)

    make.tok = tok
    return make


TEXTS = ["He is a man.", "", "A river.\nA bridge.", "  ", "She is a woman."]


def test_forms_of_texts_give_the_same_ids(corpus, tmp_path):
    expected = [text_ids(corpus.tok, text) for text in TEXTS if text]
    assert list(corpus(TEXTS)) == expected
    assert list(corpus(tuple(TEXTS))) == list(corpus(iter(TEXTS))) == expected
    assert list(corpus([{"text": text, "id": 3} for text in TEXTS])) == expected
    assert list(corpus([{"body": text} for text in TEXTS], text_column="body")) == expected
    assert list(corpus(expected)) == list(corpus(map(torch.tensor, expected))) == expected
    assert list(corpus([expected[0], TEXTS[2]])) == expected[:2]
    assert list(corpus(map(np.array, expected))) == expected
    assert list(corpus([{"ids": row} for row in expected], text_column="ids")) == expected


def test_a_data_set_of_the_datasets_library(corpus):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"text": TEXTS, "url": list("abcde")})
    assert list(corpus(rows)) == list(corpus(TEXTS))
    assert list(corpus(rows.to_iterable_dataset())) == list(corpus(TEXTS))
    with pytest.raises(InvalidArgumentError, match="no column 'body'; its columns are text, url"):
        list(corpus(rows, text_column="body"))


def test_file_is_read_line_by_line(corpus, tmp_path):
    path = tmp_path / "texts.txt"
    path.write_bytes("\ufeffHe is a man.\r\n\nÉtude 東京\n".encode())
    assert list(corpus(path)) == list(corpus(["He is a man.", "Étude 東京"]))
    assert list(corpus(str(path))) == list(corpus(path)) and corpus(path).name == "texts.txt"
    path.write_bytes(b"fine\n\xff\xfe\n")
    with pytest.raises(InvalidArgumentError, match="line 2, is not UTF-8"):
        list(corpus(path))


def test_iteration_starts_again_and_tells_how_far_it_is(corpus):
    texts = corpus(["He is a man."] * 200)
    documents = iter(texts)
    next(documents)
    assert texts.fraction_read == 64 / 200
    assert len(list(texts)) == 200 and texts.fraction_read == 1
    endless = corpus(text for text in TEXTS)
    assert list(endless) and endless.fraction_read is None


def test_long_texts_do_not_warn(corpus, recwarn, caplog):
    corpus.tok.model_max_length = 8
    assert len(next(iter(corpus(["He is a man. " * 50])))) > 50
    assert not recwarn.list and not caplog.records


@pytest.mark.parametrize(
    ("texts", "match"),
    [
        ({"train": ["a"]}, "a mapping with keys 'train': pass one of its values"),
        (3, "file or an iterable .* got int"),
        ("absent.txt", "there is no file 'absent.txt'; for one text, pass a list"),
        ([b"bytes"], r"texts\[0\] must be a string, .* got bytes"),
        (["fine", 3], r"texts\[1\] must be a string, .* got int: 3"),
        ([["a", "b"]], r"texts\[0\] must be"),
        ([torch.ones(2, 2, dtype=torch.int64)], r"texts\[0\] must be"),
        ([{"text": None}], r"texts\[0\] must be a string, .* got NoneType"),
        ([torch.ones(2)], r"texts\[0\] must be"),
        ([[1, 10**6]], r"texts\[0\] holds token id 1000000, but the model knows 0 to"),
        ([[1, -1]], r"texts\[0\] holds token id -1"),
        ([{"title": "x"}], r"texts\[0\] has no column 'text'; its columns are title"),
    ],
)
def test_bad_texts_are_named(corpus, texts, match):
    with pytest.raises(InvalidArgumentError, match=match):
        list(corpus(texts))
