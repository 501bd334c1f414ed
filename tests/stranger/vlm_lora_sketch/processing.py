"""Bytes are the tokens, and an image takes as many places as it has patches."""

import numpy as np
import torch

from vlm_lora_plugin.contract import IMAGE_MARK
from vlm_lora_plugin.data.encoding import IGNORE_INDEX, open_image, pad_rows
from vlm_lora_plugin.errors import DataError
from vlm_lora_sketch.modeling import END, IMAGE, PAD, SketchConfig


class ByteTokenizer:
    pad_token_id = PAD
    eos_token_id = END

    def batch_decode(self, rows, skip_special_tokens=True):
        return [bytes(token for token in row.tolist() if token < PAD).decode("utf-8", "replace") for row in rows]


class SketchProcessor:
    def __init__(self, config):
        self.tokenizer = ByteTokenizer()
        self.image_size, self.patches = config.image_size, config.patches

    def encode(self, example, *, max_length=None, truncation_strategy="raise"):
        ids, labels = self._ids(example.messages, example)
        if max_length is not None and len(ids) > max_length:
            if truncation_strategy == "raise" or IMAGE in ids[max_length:]:
                raise DataError(f"{example.origin}: {len(ids)} tokens, max_length is {max_length}")
            ids, labels = ids[:max_length], labels[:max_length]
        return {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels)} | self._pixels(example)

    def encode_prompt(self, example):
        messages = example.messages[:-1] if example.messages[-1].role == "assistant" else example.messages
        return {"input_ids": torch.tensor(self._ids(messages, example)[0])} | self._pixels(example)

    def count_tokens(self, example):
        labels = self._ids(example.messages, example)[1]
        return len(labels), sum(label != IGNORE_INDEX for label in labels)

    def collate(self, features):
        batch = pad_rows(features, pad_token_id=PAD)
        pixels = [row["pixel_values"] for row in features if "pixel_values" in row]
        return {**batch, "pixel_values": torch.cat(pixels)} if pixels else batch

    def save_pretrained(self, folder):
        """Nothing to write: the config says everything."""

    def _ids(self, messages, example):
        if not any(message.role == "assistant" for message in example.messages):
            raise DataError(f"{example.origin}: there is no answer to learn")
        ids, labels = [], []
        for message in messages:
            parts = message.content.split(IMAGE_MARK)
            for number, part in enumerate(parts):
                new = [IMAGE] * self.patches * bool(number) + list(part.encode())
                ids += new
                labels += new if message.role == "assistant" else [IGNORE_INDEX] * len(new)
            ids.append(END if message.role == "assistant" else ord("\n"))
            labels.append(END if message.role == "assistant" else IGNORE_INDEX)
        return ids, labels

    def _pixels(self, example):
        images = []
        for image in example.images:
            with open_image(image, origin=example.origin) as opened:
                small = np.array(opened.convert("RGB").resize((self.image_size, self.image_size)))
            images.append(torch.from_numpy(small).permute(2, 0, 1).float() / 255 - 0.5)
        return {"pixel_values": torch.stack(images)} if images else {}


def load_processor(request):
    return SketchProcessor(SketchConfig.from_pretrained(request.folder))
