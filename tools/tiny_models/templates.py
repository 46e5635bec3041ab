"""Control tokens and chat templates of each architecture, in the families' own formats."""

from __future__ import annotations

_CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_VICUNA = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {{ message['content'] }}\n"
    "{% elif message['role'] == 'assistant' %}ASSISTANT: {{ message['content'] }}</s>\n"
    "{% else %}{{ message['content'] }}\n\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
_GEMMA = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "<start_of_turn>{{ role }}\n{{ message['content'] | trim }}<end_of_turn>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
_PHI3 = (
    "{% for message in messages %}"
    "<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)

CHAT_TEMPLATES = {
    "llama": _VICUNA,
    "qwen2": _CHATML,
    "qwen2vl": _CHATML,
    "qwen3vl": _CHATML,
    "qwen2moe": _CHATML,
    "gemma3": _GEMMA,
    "phi3": _PHI3,
    "granitehybrid": _VICUNA,
    "gemma4": _GEMMA,
    "cogvlm": _VICUNA,
    "chameleon": _VICUNA,
}

_QWEN = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
_GEMMA_TOKENS = ("<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>")
CONTROL_TOKENS = {
    "llama": (),
    "qwen2": _QWEN,
    "qwen2vl": _QWEN,
    "qwen3vl": _QWEN,
    "qwen2moe": _QWEN,
    "gemma3": _GEMMA_TOKENS,
    "gemma4": _GEMMA_TOKENS,
    "granitehybrid": (),
    "cogvlm": (),
    "chameleon": (),
    "phi3": ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
}
