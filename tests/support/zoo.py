"""Every miniature model by name: what `tests/test_families.py` tests, and `make models` prints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import mixtures
import multimodal
import transformers
from families import FAMILIES, MORE, lively_family, livened
from family_checks import case
from internlm_like import internlm_like

# What transformers 4 cannot run in float64, as the oracle does.
_NOT_IN_FLOAT64 = ("Mpt", "DeepSeek-V3", "Ernie4.5-MoE", "GLM-4-MoE")


@dataclass(frozen=True)
class Member:
    """A model, and where to edit it.

    Attributes:
        make: builds it from the size of the vocabulary.
    """

    name: str
    make: Callable[[int], transformers.PreTrainedModel]
    layer: int = 1
    shared_expert: bool = False

    @property
    def request(self) -> dict[str, str]:
        """In the last layer the subject comes last: an offset there reaches no other position."""
        return case("last" if self.layer == 2 else "middle")

    @property
    def has_oracle(self) -> bool:
        """Whether this transformers runs it in float64."""
        is_old = int(transformers.__version__.split(".")[0]) < 5
        return not (is_old and self.name.startswith(_NOT_IN_FLOAT64))

    def build(self, vocabulary: int) -> transformers.PreTrainedModel | None:
        """Seeded and livened; None where this transformers does not have it."""
        try:
            return self.make(vocabulary)
        except AttributeError as error:
            if "has no attribute" in str(error) and "module transformers" in str(error):
                return None
            raise


def _mixture(name: str) -> list[Member]:
    """One member in a dense layer and one in a shared expert, where there are such."""
    mixture = mixtures.MIXTURES[name]
    routed = next(layer for layer in range(3) if layer not in mixture.dense)
    found = [Member(name, mixture.build, layer) for layer in mixture.dense[:1]]
    if mixture.shared:
        found.append(Member(f"{name}, shared expert", mixture.build, routed, True))
    return found


def _remote(vocabulary: int) -> transformers.PreTrainedModel:
    return livened(internlm_like(vocabulary), vocabulary)


def _wrapper(name: str, vocabulary: int) -> transformers.PreTrainedModel:
    return multimodal.build(name, vocabulary)[0]


# Variants of families: repetitions, as far as one knows.
VARIANTS = [Member(name, partial(lively_family, name)) for name in MORE]
ZOO = [
    *(Member(name, partial(lively_family, name)) for name in FAMILIES),
    *VARIANTS,
    Member("InternLM-like, remote code", _remote),
    *(
        # Mllama's second layer looks at images.
        Member(name, partial(_wrapper, name), layer=0 if name == "Mllama" else 1)
        for name in multimodal.WRAPPERS
    ),
    *(member for name in mixtures.MIXTURES for member in _mixture(name)),
]
