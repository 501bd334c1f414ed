"""OmniLMM's tokenizer: a Llama tokenizer as its files say, with the tokens that mark an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from vlm_lora_omnilmm.configuration import OmniLMMConfig
from vlm_lora_omnilmm.names import GROUNDING_TOKENS, IMAGE_TOKENS
from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.models import read_json

TOKENIZER_FILE = "tokenizer.json"
SENTENCEPIECE_FILE = "tokenizer.model"
TOKENIZER_CONFIG = "tokenizer_config.json"

ZEPHYR_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
"""Zephyr's chat template, for a tokenizer that brings none."""


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """Read a folder's tokenizer, and add the image tokens that it lacks, as upstream's ``chat.py`` does.

    ``tokenizer.json`` is used as it is written: a class that rebuilds it would change the rule for leading
    spaces. ``tokenizer.model`` alone is read as transformers 4 did, ``legacy`` unless the config says otherwise.

    Raises:
        ModelError: There is no tokenizer, or it cannot be read.
    """
    path = Path(folder)
    fix = f"Put the published {TOKENIZER_FILE} or {SENTENCEPIECE_FILE} and {TOKENIZER_CONFIG} into the model folder."
    settings = _settings(path)
    try:
        if (path / TOKENIZER_FILE).is_file():
            tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(path)
        elif (path / SENTENCEPIECE_FILE).is_file():
            stated = settings[TOKENIZER_CONFIG].get("legacy")
            tokenizer = LlamaTokenizer.from_pretrained(path, legacy=stated is None or bool(stated))
        else:
            raise ModelError(f"{path} has neither {TOKENIZER_FILE} nor {SENTENCEPIECE_FILE}", fix=fix)
    except ModelError:
        raise
    except Exception as error:  # the library reads several files and trusts each
        raise ModelError(f"The tokenizer in {path} cannot be read: {error}", fix=fix) from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"The tokenizer in {path} names no end-of-sequence token", fix=fix)
    tokenizer.add_tokens(list(IMAGE_TOKENS), special_tokens=True)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.chat_template is None:
        tokenizer.chat_template = ZEPHYR_TEMPLATE
    return tokenizer


def _settings(folder: Path) -> dict[str, Any]:
    """Return the content of each file of settings, nothing where there is no such file."""
    found: dict[str, Any] = {}
    for name in (TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json"):
        file = folder / name
        try:
            found[name] = read_json(file) if file.is_file() else {}
        except (OSError, ValueError) as error:
            raise ModelError(f"{file} cannot be read: {error}", fix="Use the published file, or none.") from None
        if not isinstance(found[name], dict):
            raise ModelError(f"{file} holds no JSON object", fix="Use the published file, or none.")
    return found


def image_ids(tokenizer: PreTrainedTokenizerFast) -> tuple[int, int, int]:
    """Return the ids of ``<im_patch>``, ``<im_start>`` and ``<im_end>``."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    patch, start, end = (vocabulary[token] for token in IMAGE_TOKENS)
    return patch, start, end


def resolve_image_ids(config: OmniLMMConfig, folder: Path) -> OmniLMMConfig:
    """Set the config's token ids from a folder's tokenizer, where there is one.

    Raises:
        ModelError: The tokenizer cannot be read, numbers the tokens otherwise than the config, or beyond the
            model's embeddings.
    """
    if not any((folder / name).is_file() for name in (TOKENIZER_FILE, SENTENCEPIECE_FILE)):
        return config
    found = image_ids(load_tokenizer(folder))
    stated = (config.im_patch_token, config.im_start_token, config.im_end_token)
    if any(own is not None and own != other for own, other in zip(stated, found, strict=True)):
        raise ModelError(
            f"In {folder} the tokenizer gives {', '.join(IMAGE_TOKENS)} the ids {found}, config.json says {stated}",
            why="The model would not find its images in the prompt.",
            fix="Use the tokenizer and the config.json of one and the same model.",
        )
    if max(found) >= config.vocab_size:
        raise ModelError(
            f"In {folder} the tokenizer gives {', '.join(IMAGE_TOKENS)} the ids {found}, "
            f"the model has {config.vocab_size} embeddings",
            fix="Use the tokenizer and the config.json of one and the same model.",
        )
    config.im_patch_token, config.im_start_token, config.im_end_token = found
    return config


def tiny_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Return a Llama-like tokenizer of the 256 bytes and the words of some texts; for tests and tiny models.

    It is in Llama's legacy form, with Zephyr's template; ``<unk>``, ``<s>`` and ``</s>`` are 0, 1 and 2, and the
    image and grounding tokens come last. Every prefix of a word is a token too, so that merges are unambiguous.

    Args:
        texts: Their words become one token each.
    """
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = dict.fromkeys(word for text in texts for word in ("▁" + text.replace(" ", " ▁")).split())
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        pieces += word
        for cut in range(1, len(word)):
            pieces.append(word[: cut + 1])
            merges[word[:cut], word[cut]] = None
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys([*pieces, "▁"]))}
    model = BPE(vocab=vocabulary, merges=list(merges), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>",
        padding_side="right",
        clean_up_tokenization_spaces=False,
        chat_template=ZEPHYR_TEMPLATE,
    )
    tokenizer.add_tokens([*IMAGE_TOKENS, *GROUNDING_TOKENS], special_tokens=True)
    return tokenizer
