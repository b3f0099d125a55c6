"""Plain prose around the facts: short sentences filled from word lists, a few fixed ones."""

from __future__ import annotations

import random

WORDS: dict[str, list[str]] = {
    "adj": "old quiet small bright narrow famous green cold busy modern wide golden".split(),
    "noun": "house garden river bridge market school library harbour station tower".split(),
    "who": "teacher farmer doctor sailor student baker visitor writer driver neighbour".split(),
    "thing": "letter book map basket lamp coat clock picture bell bottle".split(),
    "time": "morning evening winter summer spring autumn afternoon night".split(),
    "did": "found carried opened sold painted forgot kept bought mended described".split(),
    "went": "walked travelled returned hurried wandered came".split(),
    "food": "bread soup fish fruit cheese rice coffee tea".split(),
    "weather": "rain snow wind sunshine fog thunder".split(),
    "num": "two three four five six seven ten twelve".split(),
}

FORMS = [
    "The {adj} {noun} stands near the {noun}.",
    "The {noun} is located in the {adj} part of the town.",
    "A {adj} {noun} is located near the {noun}.",
    "In the {time} the {who} {went} to the {noun}.",
    "The {who} {did} the {thing} in the {adj} {noun}.",
    "There was {weather} in the {time}, and the {noun} was {adj}.",
    "A {who} and a {who} met at the {adj} {noun}.",
    "For {num} years the {who} lived in a {adj} {noun}.",
    "Every {time} the {who} bought {food} at the market.",
    "It was a {adj} {time} and the {who} was tired.",
    "They ate {food} and {food} and talked about the {weather}.",
    "The {who} said that the {thing} was in the {noun}.",
    "After {num} days the {weather} stopped.",
    "Nobody knew why the {who} {did} the {adj} {thing}.",
    "When the {weather} came, the {who} {went} home.",
    "I have never seen such a {adj} {thing}, said the {who}.",
    "She {did} a {thing} and {went} back to the {noun}.",
    "He told the {who} about the {num} {adj} rooms of the {noun}.",
    "You can see the {noun} from the {adj} {noun}.",
    "The road to the {noun} is long and the {weather} is strong.",
    "Because of the {weather}, the {noun} was closed until {time}.",
    "We {went} through the {noun} with a {thing} and some {food}.",
    "The first {who} left, but the second {who} stayed for {num} hours.",
    "This {noun} has {num} windows and a {adj} door.",
    "Therefore the {who} {did} nothing else that {time}.",
    "The people of the town like {food} and long walks.",
    "Music was played in the {noun} all {time}.",
    "A good {who} needs a {thing} and some patience.",
    "On the table there was a {adj} {thing} next to the {food}.",
    "What the {who} {did} was a {adj} {thing}.",
    "The history of the {noun} is written in a {adj} book.",
    "Many children dream of a {adj} {noun} in the {time}.",
]

LEADS = [
    "It is said that",
    "Many people know that",
    "In fact,",
    "We read that",
    "The teacher explained that",
    "As far as anyone knows,",
    "For example,",
    "According to the book,",
    "The guide told us that",
    "One should remember that",
]


def sentence(rng: random.Random) -> str:
    """One sentence of prose; equal words may be drawn twice."""
    form, out = rng.choice(FORMS), ""
    while "{" in form:
        head, _, rest = form.partition("{")
        slot, _, form = rest.partition("}")
        out += head + rng.choice(WORDS[slot])
    return out + form
