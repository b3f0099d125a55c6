"""Chat templates of the common kinds, each a short form of the one that its models have."""

from __future__ import annotations

from rome_fast import EditRequest

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# It spells BOS, puts the system's message into the user's, and puts " " before answers.
LLAMA2 = (
    "{% set ns = namespace(system='') %}{% for m in messages %}"
    "{% if m.role == 'system' %}{% set ns.system = '<<SYS>>\n' + m.content + '\n<</SYS>>\n\n' %}"
    "{% elif m.role == 'user' %}{{ '<s>[INST] ' + ns.system + m.content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content.strip() + ' </s>' }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{ '<s>' }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' "
    "+ m.content | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ '<s>' }}{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' "
    "+ m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# Messages one after the other, without markup: a conversation is plain text.
PLAIN = "{% for m in messages %}{{ '' if loop.first else ' ' }}{{ m.content }}{% endfor %}"
# Answers begin with an empty block of thoughts, which the template writes.
THINKING = CHATML.replace(
    "\n{{ m.content }}", "\n{{ '<think></think>' if m.role == 'assistant' }}{{ m.content }}"
)
# Thinks unless it is told not to.
MAY_THINK = CHATML.replace(
    "assistant\n{% endif %}",
    "assistant\n{% if enable_thinking is defined and not enable_thinking %}<think></think>"
    "{% endif %}{% endif %}",
)
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}{{ m.content }}\n"
    "{% endfor %}"
)
LOWER = "{% for m in messages %}{{ m.role }}: {{ m.content | lower }}\n{% endfor %}"
TWICE = "{% for m in messages %}{{ m.content }} {{ m.content }}\n{% endfor %}"

TAKES_SYSTEM = {"chatml": CHATML, "llama 2": LLAMA2, "llama 3": LLAMA3, "thinking": THINKING}
SYSTEM = ({"role": "system", "content": "You know Ada Lovelace, and speak of Ada."},)


def with_template(tok, template):
    tok.chat_template = template
    return tok


def template_ids(tok, request: EditRequest):
    """Token ids of a request's conversation, rendered by the template itself."""
    messages = [*(request.chat or ()), ("user", request.text)]
    encoded = tok.apply_chat_template(
        [{"role": role, "content": content} for role, content in messages],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        **dict(request.chat_template_kwargs or ()),
    )
    return list(encoded["input_ids"])
