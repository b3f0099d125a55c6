"""Tokenizers of every kind, trained here in a moment: ``ALL["wordpiece"]()``."""

from __future__ import annotations

import json
from functools import cache

from tiny import SENTENCES, byte_level_tokenizer
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

TEXTS = (
    *SENTENCES,
    "中国的首都北京是一座城市,上海也是一座城市。",
    "日本の首都は東京です。京都は古い都です。",
    "กรุงเทพเป็นเมืองหลวงของประเทศไทย",
    "서울은 대한민국의 수도이고 부산은 항구 도시이다.",
    "يقع برج إيفل في باريس وتقع القاهرة في مصر.",
    "ירושלים היא עיר בישראל.",
    "Die Stadt Köln liegt am Rhein, und Zürich liegt in der Schweiz.",
)
_BOS, _EOS = {"bos_token": "<s>"}, {"eos_token": "</s>"}
_METASPACE = decoders.Replace("▁", " ")


class Liar(PreTrainedTokenizerFast):
    """Reports for each token the offsets of the third one before it."""

    def __call__(self, *texts, **options):
        encoded = super().__call__(*texts, **options)
        if "offset_mapping" in encoded:
            true = encoded["offset_mapping"]
            encoded["offset_mapping"] = [*[(0, 0)] * 3, *true][: len(true)]
        return encoded


class Slow(PreTrainedTokenizer):
    """Pure Python, without offsets: the longest piece that it knows, from left to right."""

    def __init__(self, adds_eos=False, **options):
        words = {word for text in TEXTS for word in text.replace(" ", " ▁").split()}
        halves = {word[:n] for word in words for n in (2, 3, 5) if word[:n]}
        letters = set("".join(words)) | set("(){}[]\"'-%\n")
        names = ["<unk>", "<s>", "</s>", *sorted(words | halves | letters)]
        self._ids = {name: i for i, name in enumerate(names)}
        self._names, self._adds_eos = names, adds_eos
        super().__init__(unk_token="<unk>", **_BOS, **_EOS, **options)

    @property
    def vocab_size(self):
        return len(self._names)

    def get_vocab(self):
        return dict(self._ids)

    def _tokenize(self, text, **options):
        text, found = text.replace(" ", "▁"), []
        while text:
            sizes = range(min(len(text), 16), 0, -1)
            size = next((n for n in sizes if text[:n] in self._ids), 1)
            found.append(text[:size])
            text = text[size:]
        return found

    def _convert_token_to_id(self, token):
        return self._ids.get(token, 0)

    def _convert_id_to_token(self, index):
        return self._names[index]

    def convert_tokens_to_string(self, tokens):
        return "".join(tokens).replace("▁", " ")

    def build_inputs_with_special_tokens(self, token_ids_0, token_ids_1=None):
        return [1, *token_ids_0, *([2] if self._adds_eos else [])]


def _trained(model, pre_tokenizer, decoder, trainer, normalizer=None, texts=TEXTS):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoder
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def byte_fallback(texts):
    """A tokenizer with a dummy prefix and BOS, trained on these texts."""
    return _fast(_byte_fallback(True, texts), "<s> $A", **_BOS, **_EOS)


@cache
def _byte_fallback(dummy_prefix, texts=SENTENCES):
    """Like Llama's: byte tokens, not special ones, for scripts that it was not trained on."""
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    strip = [decoders.Strip(" ", 1, 0)] if dummy_prefix else []
    tokenizer = _trained(
        models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True),
        pre_tokenizers.Metaspace(prepend_scheme="first" if dummy_prefix else "never"),
        decoders.Sequence([_METASPACE, decoders.ByteFallback(), decoders.Fuse(), *strip]),
        trainers.BpeTrainer(
            vocab_size=600,
            special_tokens=["<unk>", "<s>", "</s>", *fallback],
            show_progress=False,
        ),
        texts=texts,
    )
    read = json.loads(tokenizer.to_str())
    read["added_tokens"] = read["added_tokens"][:3]
    return json.dumps(read)


@cache
def _wordpiece():
    tokenizer = _trained(
        models.WordPiece(unk_token="[UNK]"),
        pre_tokenizers.BertPreTokenizer(),
        decoders.WordPiece(),
        trainers.WordPieceTrainer(
            vocab_size=500, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False
        ),
        normalizers.BertNormalizer(lowercase=True),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return tokenizer.to_str()


@cache
def _unigram(dummy_prefix):
    scheme = "always" if dummy_prefix else "never"
    return _trained(
        models.Unigram(),
        pre_tokenizers.Metaspace(prepend_scheme=scheme),
        decoders.Metaspace(prepend_scheme=scheme),
        trainers.UnigramTrainer(
            vocab_size=400,
            special_tokens=["<unk>", "<s>", "</s>"],
            unk_token="<unk>",
            show_progress=False,
        ),
        normalizers.NFKC(),
    ).to_str()


def _fast(text, single="$A", kind=PreTrainedTokenizerFast, **names):
    tokenizer = Tokenizer.from_str(text)
    if single != "$A":
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    return kind(tokenizer_object=tokenizer, **{"unk_token": "<unk>", **names})


ALL = {
    "bytes": byte_level_tokenizer,
    "metaspace": lambda: byte_fallback(SENTENCES),
    "metaspace without dummy prefix": lambda: _fast(_byte_fallback(False), **_BOS, **_EOS),
    "bos and eos": lambda: _fast(_byte_fallback(True), "<s> $A </s>", **_BOS, **_EOS),
    "offsets that lie": lambda: _fast(_byte_fallback(True), "<s> $A", kind=Liar, **_BOS, **_EOS),
    "wordpiece": lambda: PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_wordpiece()), unk_token="[UNK]", sep_token="[SEP]"
    ),
    "unigram": lambda: _fast(_unigram(True), "$A </s>", **_EOS),
    "unigram without dummy prefix": lambda: _fast(_unigram(False), "<s> $A", **_BOS),
    "slow": Slow,
    "slow, bos and eos": lambda: Slow(adds_eos=True),
}
# Those that keep every text; the others have an unknown token, or change letters.
FAITHFUL = (
    "bytes",
    "metaspace",
    "metaspace without dummy prefix",
    "bos and eos",
    "offsets that lie",
)
