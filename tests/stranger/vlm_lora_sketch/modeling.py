"""A Llama of transformers whose image tokens are replaced by features of image patches."""

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

PAD, END, IMAGE = 256, 257, 258


class SketchConfig(LlamaConfig):
    model_type = "sketch_vlm"
    image_size: int = 16
    patch_size: int = 8

    @property
    def patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


class Eyes(nn.Module):
    """Cuts images [N, 3, S, S] into patches and projects each: [N, patches, hidden]."""

    def __init__(self, config):
        super().__init__()
        self.patch_size = config.patch_size
        self.proj = nn.Linear(3 * config.patch_size**2, config.hidden_size)

    def forward(self, pixels):
        patches = nn.functional.unfold(pixels, self.patch_size, stride=self.patch_size).transpose(1, 2)
        return nn.functional.gelu(self.proj(patches.to(self.proj.weight.dtype)))


class SketchForCausalLM(LlamaForCausalLM):
    config_class = SketchConfig

    def __init__(self, config):
        super().__init__(config)
        self.eyes = Eyes(config)
        self.bridge = nn.Linear(config.hidden_size, config.hidden_size)
        self.post_init()

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        pixel_values=None,
        inputs_embeds=None,
        labels=None,
        logits_to_keep=0,
        **kwargs,
    ):
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give input_ids or inputs_embeds, exactly one")
        if inputs_embeds is None:
            inputs_embeds = self.model.embed_tokens(input_ids)
            if pixel_values is not None and (input_ids == IMAGE).any():
                features = self.bridge(self.eyes(pixel_values)).flatten(0, 1).to(inputs_embeds.dtype)
                places = (input_ids == IMAGE).unsqueeze(-1)
                inputs_embeds = inputs_embeds.masked_scatter(places, features)
        kwargs |= {"attention_mask": attention_mask, "labels": labels, "logits_to_keep": logits_to_keep}
        return super().forward(inputs_embeds=inputs_embeds, **kwargs)

    def prepare_inputs_for_generation(self, input_ids, pixel_values=None, **kwargs):
        return {**super().prepare_inputs_for_generation(input_ids, **kwargs), "pixel_values": pixel_values}


def load_model(request):
    if request.device == "meta":
        with torch.device("meta"):
            config = SketchConfig.from_pretrained(request.folder)
            return SketchForCausalLM(config).to(request.dtype or torch.float32).eval()
    model = SketchForCausalLM.from_pretrained(request.folder, dtype=request.dtype or torch.float32)
    return model.to(request.device).eval()


def write_tiny(folder):
    """Write a model folder with random weights."""
    torch.manual_seed(0)
    config = SketchConfig(
        vocab_size=IMAGE + 1,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=END,
        tie_word_embeddings=False,
        initializer_range=0.2,  # with the usual 0.02 the frozen head could hardly prefer any token
    )
    SketchForCausalLM(config).save_pretrained(folder)
