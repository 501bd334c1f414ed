"""Bytes are the tokens, and an image takes as many places as it has patches."""

import numpy as np
import torch

from vlm_lora_plugin.contract import IMAGE_MARK
from vlm_lora_plugin.data.encoding import Encoded, EncodingProcessor, check_ends_with_answer, read_rgb
from vlm_lora_sketch.modeling import END, IMAGE, PAD, SketchConfig


class ByteTokenizer:
    pad_token_id = PAD
    eos_token_id = END

    def batch_decode(self, rows, skip_special_tokens=True):
        return [bytes(token for token in row.tolist() if token < PAD).decode("utf-8", "replace") for row in rows]


class SketchProcessor(EncodingProcessor):
    def __init__(self, config):
        self.tokenizer = ByteTokenizer()
        self.image_size, self.image_span = config.image_size, config.patches

    def encode_row(self, example, image_tokens, *, answered):
        messages = example.messages
        if answered:
            check_ends_with_answer(messages, example.origin)
        elif messages[-1].role == "assistant":
            messages = messages[:-1]
        encoded, spans = Encoded(), iter(image_tokens)
        for message in messages:
            answer = message.role == "assistant"
            for number, part in enumerate(message.content.split(IMAGE_MARK)):
                if number:
                    encoded.append_image([IMAGE] * next(spans))
                encoded.append(list(part.encode()), supervised=message.supervised)
            encoded.append([END] if answer else [ord("\n")], supervised=message.supervised)
        return encoded

    def load_image(self, image, origin):
        small = np.array(read_rgb(image, origin=origin).resize((self.image_size, self.image_size)))
        return torch.from_numpy(small).permute(2, 0, 1).float() / 255 - 0.5

    def save_pretrained(self, folder):
        """Nothing to write: the config says everything."""


def load_processor(request):
    return SketchProcessor(SketchConfig.from_pretrained(request.folder))
