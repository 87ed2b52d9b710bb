"""Chat templates of the kinds that published models have, short."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["REFUSES_PROMPTS", "TEMPLATES"]

TEMPLATES: Mapping[str, str] = {
    # Qwen 2 and 3, and most others: every message between the same two tokens.
    "chatml": (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n"
        "{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    # Qwen 2: a system's message of its own where there is none.
    "default_system": (
        "{% if messages[0].role != 'system' %}<|im_start|>system\n"
        "You are a helpful mill.<|im_end|>\n{% endif %}"
        "{% for message in messages %}<|im_start|>{{ message.role }}\n"
        "{{ message.content | trim }}<|im_end|>\n{% endfor %}<|endoftext|>"
    ),
    # Models of several kinds of input: the content is a list of parts.
    "parts": (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n"
        "{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}"
        "{% endif %}{% endfor %}<|im_end|>\n{% endfor %}{{ eos_token }}"
    ),
    # Mistral and Llama 2: nothing but brackets, and the system's message inside them.
    "brackets": (
        "{% set system = '' %}{% if messages[0].role == 'system' %}"
        "{% set system = messages[0].content + '\n\n' %}{% set messages = messages[1:] %}"
        "{% endif %}"
        "{{ eos_token }}[INST] {{ system }}{{ messages[0].content }} [/INST]"
    ),
    # Rerankers and embedders that end with what the model is to say: the prompt comes last.
    "prompt_last": (
        "<|im_start|>{{ messages[-1].content }}<|im_end|>"
        "{% if messages[0].role == 'system' %}\n{{ messages[0].content }}{% endif %}"
        "\n<think>\n\n</think>\n\n"
    ),
    # Embedders that tell queries from documents.
    "task": (
        "{% for message in messages %}{{ message.content }}\n{% endfor %}"
        "{% if task == 'query' %}<|im_end|><|im_end|>{% else %}<|im_start|>{% endif %}"
    ),
    # Gemma: there is no place for a system's message.
    "refuses_prompts": (
        "{% if messages[0].role == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
        "<|im_start|>{{ messages[0].content }}<|im_end|>\n"
    ),
}
REFUSES_PROMPTS = "refuses_prompts"
