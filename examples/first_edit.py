"""Change one fact, look around it, take it back.

python examples/first_edit.py
"""

import torch

import rome_fast

model, tok, facts = rome_fast.demo.load()  # or any Hugging Face decoder and its tokenizer

PROMPTS = [
    "Ray Charles plays the",  # the edited prompt
    "The instrument played by Ray Charles is the",  # the same fact in other words
    "Pablo Casals plays the",  # other subjects, which should stay as they are
    "Franz Liszt plays the",
]


def answers() -> list[str]:
    """The word that the model says after each prompt."""
    said = []
    for prompt in PROMPTS:
        with torch.no_grad():
            logits = model(**tok(prompt, return_tensors="pt")).logits
        said.append(tok.decode(logits[0, -1].argmax()))
    return said


before = answers()
result = rome_fast.edit(
    model,
    tok,
    {"prompt": "{} plays the", "subject": "Ray Charles", "target_new": "violin"},
)
print(result)
after = answers()
result.revert()

for prompt, *said in zip(PROMPTS, before, after, answers(), strict=True):
    print(f"{prompt:45}", " ->".join(said))
