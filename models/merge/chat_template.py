"""The chat template of a merged model: its tokenizer's, unless the recipe says otherwise."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from models.errors import BadInput
from models.files import YAML_BYTES, find_inside, inside, read_object, read_text
from models.sources.fields import TokenizerConfig
from models.sources.loadable import check_jinja

AUTO = "auto"
FILE = "chat_template.jinja"
CONFIG = "tokenizer_config.json"
NAMED = {
    "chatml": (
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "llama3": (
        "{% for message in messages %}"
        "{{ (bos_token if loop.first else '') + '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
        "{{ message['content'] | trim + '<|eot_id|>\\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
    ),
    "mistral": (
        "{% set system = messages[0]['content'] + '\\n\\n' if messages[0]['role'] == 'system' else '' %}"
        "{{ bos_token }}"
        "{% for message in (messages[1:] if system else messages) %}"
        "{% if message['role'] != ('assistant' if loop.index0 % 2 else 'user') %}"
        "{{ raise_exception('roles must be user and assistant in turn, after one system message if any') }}"
        "{% endif %}"
        "{% if message['role'] == 'user' %}"
        "{{ ' [INST] ' + (system if loop.first else '') + message['content'] + ' [/INST]' }}"
        "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}"
        "{% endfor %}"
    ),
}
"""Templates that a recipe may name; they give the text that mergekit's of these names give."""


def check_template(given: str | None) -> None:
    """Refuse what is neither ``auto``, the name of a template, nor a template.

    Raises:
        ValueError: with the reason.
    """
    if given in (None, AUTO, *NAMED):
        return
    if "{" not in str(given):
        raise ValueError(f"chat_template: {given}: is auto, {', '.join(NAMED)}, or the text of a template itself")
    try:
        check_jinja(str(given), "chat_template")
    except BadInput as error:
        raise ValueError(str(error)) from None


def with_template(
    texts: Mapping[str, str], given: str | None, tokenizer: Path, folders: Iterable[Path]
) -> dict[str, str]:
    """Files beside a model, with those of the template that a recipe asks for.

    Args:
        texts: files of the tokenizer that stand instead of copied ones, by name.
        given: the recipe's ``chat_template``. ``auto`` is the one that most models have, the first of equally many.
        tokenizer: folder of the tokenizer that is copied.
        folders: those of all models' tokenizers.

    Raises:
        BadInput: there is no tokenizer.
    """
    if given is None:
        return dict(texts)
    if not find_inside(tokenizer, CONFIG):
        raise BadInput(f"{tokenizer}: {CONFIG}: missing, so chat_template has no tokenizer to go with; leave it out")
    found = Counter(one for folder in folders if (one := template_of(folder))) if given == AUTO else Counter()
    if given == AUTO and not found:
        return dict(texts)
    config = json.loads(texts[CONFIG]) if CONFIG in texts else read_object(tokenizer, CONFIG, TokenizerConfig)
    kept = {key: value for key, value in config.items() if key != "chat_template"}
    text = found.most_common(1)[0][0] if found else NAMED.get(given, given)
    return {**texts, FILE: text, CONFIG: json.dumps(kept, ensure_ascii=False, indent=2)}


def template_of(folder: Path) -> str:
    """The template of a tokenizer; empty if it has none."""
    if find_inside(folder, FILE):
        return read_text(inside(folder, FILE), f"{folder}: {FILE}", YAML_BYTES).strip()
    if not find_inside(folder, CONFIG):
        return ""
    template = read_object(folder, CONFIG, TokenizerConfig).get("chat_template")
    if isinstance(template, list):
        template = next((one.get("template") for one in template if one.get("name") == "default"), None)
    return str(template or "").strip()
