"""What is relied on in transformers' models and tokenizers, and in accelerate, without their promise.

A failure here means that one has changed.

Look at what the test names before anything else; ``relied_on.py`` tells which of our files touch it.
"""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest
import torch
from relied_on import relies_on
from test_relied_on_trainer import tiny_llama
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init


@relies_on("GradientCheckpointingLayer._gradient_checkpointing_func")
@pytest.mark.parametrize("training", [True, False])
def test_a_checkpointing_layer_calls_the_function_set_on_it_in_training_alone(training):
    from transformers.modeling_layers import GradientCheckpointingLayer

    class Layer(GradientCheckpointingLayer):
        def forward(self, x, *, factor):
            return x * factor

    layer, called = Layer().train(training), []
    assert layer.gradient_checkpointing is False
    layer.gradient_checkpointing = True
    layer._gradient_checkpointing_func = lambda function, *args: called.append(args) or function(*args)
    x = torch.ones(2)
    assert torch.equal(layer(x, factor=3), 3 * x)
    assert called == ([(x,)] if training else [])


class TinyConfig(PreTrainedConfig):
    model_type = "relied_on_tiny"


class Tiny(PreTrainedModel):
    """A model that tells what of it was loaded when the library initialises the rest."""

    config_class = TinyConfig
    _no_split_modules = ["Block"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _keys_to_ignore_on_load_unexpected = [r"old\.mask$"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config):
        super().__init__(config)
        self.kept, self.fresh = nn.Linear(2, 2), nn.Linear(2, 2)
        self.unloaded, self.initialised = set(), []
        self.post_init()

    def initialize_weights(self):
        super().initialize_weights()
        self.unloaded = {n for n, p in self.named_parameters() if not getattr(p, "_is_hf_initialized", False)}

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            self.initialised.append(module)
            init.constant_(module.bias, 7.0)


class Unable(Tiny):
    _supports_sdpa = _supports_flash_attn = False


@pytest.fixture
def stored(tmp_path):
    """A folder with a Tiny's weights without ``fresh``, and with a tensor that is to be ignored."""
    from safetensors.torch import save_file

    model = Tiny(TinyConfig())
    model.save_pretrained(tmp_path)
    tensors = {"kept.weight": torch.ones(2, 2), "kept.bias": torch.ones(2), "old.mask": torch.ones(1)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


@pytest.mark.filterwarnings("ignore")
@relies_on("parameter._is_hf_initialized", "PreTrainedModel.initialize_weights")
def test_loaded_parameters_are_marked_when_the_rest_is_initialised(stored):
    assert Tiny.from_pretrained(stored).unloaded <= {"fresh.weight", "fresh.bias"}
    seen = {}

    class Looking(Tiny):
        def initialize_weights(self):
            seen.update({n: getattr(p, "_is_hf_initialized", False) for n, p in self.named_parameters()})
            super().initialize_weights()

    Looking.from_pretrained(stored)
    assert seen == {"kept.weight": True, "kept.bias": True, "fresh.weight": False, "fresh.bias": False}


@relies_on("PreTrainedModel._init_weights", "initialization")
def test_init_weights_is_called_for_what_was_not_loaded_and_spares_what_was(stored):
    model = Tiny.from_pretrained(stored)
    assert model.fresh in model.initialised
    assert model.fresh.bias.tolist() == [7.0, 7.0]
    assert model.kept.bias.tolist() == [1.0, 1.0]


@relies_on("PreTrainedModel._keys_to_ignore_on_load_unexpected")
def test_a_tensor_to_be_ignored_is_not_reported(stored):
    _, report = Tiny.from_pretrained(stored, output_loading_info=True)
    assert set(report["missing_keys"]) == {"fresh.weight", "fresh.bias"}
    assert set(report["unexpected_keys"]) == set()


@relies_on("PreTrainedModel._no_split_modules", "PreTrainedModel._skip_keys_device_placement")
def test_a_models_lists_for_several_devices_are_read_by_the_library():
    model = Tiny(TinyConfig())
    assert set(model._no_split_modules) == {"Block"}
    assert set(model._skip_keys_device_placement) == {"past_key_values"}
    from transformers.integrations import accelerate

    source = inspect.getsource(accelerate)
    assert "._no_split_modules" in source
    assert "._skip_keys_device_placement" in source


@relies_on("config._attn_implementation", "PreTrainedModel._supports_sdpa")
def test_the_attention_is_sdpa_where_the_class_supports_it():
    assert Tiny(TinyConfig()).config._attn_implementation == "sdpa"
    assert Unable(TinyConfig()).config._attn_implementation == "eager"
    with pytest.raises(ValueError, match="scaled_dot_product_attention"):
        Unable(TinyConfig(attn_implementation="sdpa"))


@relies_on("PreTrainedModel._supports_flash_attn")
def test_flash_attention_is_refused_where_the_class_does_not_support_it():
    with pytest.raises(ValueError, match="Flash"):
        Unable(TinyConfig(attn_implementation="flash_attention_2"))


@relies_on("config._attn_implementation", "ALL_ATTENTION_FUNCTIONS")
def test_the_attention_of_a_config_is_looked_up_at_each_forward(monkeypatch):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    from transformers.models.llama.modeling_llama import eager_attention_forward

    assert ALL_ATTENTION_FUNCTIONS.get_interface("eager", eager_attention_forward) is eager_attention_forward
    plain, called = ALL_ATTENTION_FUNCTIONS.get_interface("sdpa", eager_attention_forward), []
    assert plain is not eager_attention_forward
    model = tiny_llama()
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", lambda *a, **k: called.append(1) or plain(*a, **k))
    for implementation in ("eager", "sdpa"):
        model.config._attn_implementation = implementation
        model(input_ids=torch.ones(1, 3, dtype=torch.long))
    assert called == [1]


@relies_on("eager_attention_forward")
def test_eager_attention_reads_the_number_of_groups_from_the_module():
    from transformers.models.llama.modeling_llama import eager_attention_forward

    torch.manual_seed(0)
    query, key, value = torch.randn(1, 4, 3, 2), torch.randn(1, 2, 3, 2), torch.randn(1, 2, 3, 2)
    module = SimpleNamespace(num_key_value_groups=2, training=False)
    context, _ = eager_attention_forward(module, query, key, value, None, dropout=0.0, scaling=2**-0.5)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    torch.testing.assert_close(context, expected.transpose(1, 2))


@relies_on("CLIPEncoder")
def test_clips_encoder_takes_embeddings_and_returns_the_last_states():
    from transformers import CLIPVisionConfig
    from transformers.models.clip.modeling_clip import CLIPEncoder

    config = CLIPVisionConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    config._attn_implementation = "eager"
    assert CLIPEncoder(config)(inputs_embeds=torch.zeros(1, 3, 8)).last_hidden_state.shape == (1, 3, 8)


@relies_on("GenerationMixin._expand_inputs_for_generation", "GenerationMixin.prepare_inputs_for_generation")
@pytest.mark.parametrize("options", [{"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}], ids=str)
def test_generate_repeats_its_inputs_through_the_models_own_method(options):
    expanded, first = [], []

    class Repeating(LlamaForCausalLM):
        def _expand_inputs_for_generation(self, expand_size=1, input_ids=None, **kwargs):
            expanded.append((expand_size, len(input_ids), kwargs.pop("pixel_values")))
            ids, inputs = super()._expand_inputs_for_generation(expand_size=expand_size, input_ids=input_ids, **kwargs)
            assert torch.equal(ids, input_ids.repeat_interleave(expand_size, dim=0))
            return ids, {**inputs, "pixel_values": "ours"}

        def prepare_inputs_for_generation(self, *args, is_first_iteration=False, **kwargs):
            first.append((is_first_iteration, kwargs.pop("pixel_values")))
            return super().prepare_inputs_for_generation(*args, is_first_iteration=is_first_iteration, **kwargs)

        def forward(self, *args, pixel_values=None, **kwargs):
            return super().forward(*args, **kwargs)

    model = tiny_llama(Repeating)
    ids = torch.tensor([[3, 4], [5, 6]])
    images = torch.zeros(3, 1)
    model.generate(ids, pixel_values=images, max_new_tokens=2, min_new_tokens=2, pad_token_id=0, **options)
    assert [(size, count) for size, count, _ in expanded] == [(2, 2)]
    assert expanded[0][2] is images
    assert first == [(True, "ours"), (False, "ours")]


@relies_on("TikTokenConverter")
def test_the_tiktoken_converter_asks_its_own_method_for_the_vocabulary():
    from transformers.convert_slow_tokenizer import TikTokenConverter, bytes_to_unicode

    class Ours(TikTokenConverter):
        def extract_vocab_merges_from_model(self, tiktoken_url):
            assert tiktoken_url == "the file"
            vocabulary = {shown: byte for byte, shown in bytes_to_unicode().items()}
            return {**vocabulary, "ab": 256}, [("a", "b")]

    tokenizer = Ours("the file", r"\p{N}|[^\p{N}]+", extra_special_tokens=["<end>", "<img>"]).converted()
    assert tokenizer.encode("ab<img>1").ids == [256, 258, ord("1")]
    assert tokenizer.decode([256, ord("1")]) == "ab1"


@relies_on("bytes_to_unicode")
def test_each_byte_is_shown_as_one_character_of_its_own():
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    shown = bytes_to_unicode()
    assert shown.keys() == set(range(256))
    assert len(set(shown.values())) == 256
    assert all(len(character) == 1 for character in shown.values())


@relies_on("extract_model_from_parallel", "OptimizedModule._orig_mod")
def test_accelerate_takes_off_what_compile_puts_around_a_model():
    from accelerate.utils import extract_model_from_parallel

    inner = nn.Linear(2, 2)
    compiled = torch.compile(inner)
    assert compiled._orig_mod is inner
    assert extract_model_from_parallel(compiled, keep_torch_compile=False) is inner
    assert extract_model_from_parallel(inner, keep_torch_compile=False) is inner


@relies_on("ModuleSpec._initializing")
def test_a_module_is_marked_while_it_is_imported(tmp_path, monkeypatch):
    (tmp_path / "relied_on_half.py").write_text("seen = __spec__._initializing")
    monkeypatch.syspath_prepend(str(tmp_path))
    import relied_on_half

    assert relied_on_half.seen is True
    assert not relied_on_half.__spec__._initializing


@relies_on("Module._modules", "Module._parameters", "Module._buffers")
def test_a_torch_module_keeps_its_parts_in_three_dictionaries_of_its_own():
    module = nn.BatchNorm1d(2)
    module.inner = nn.Linear(1, 1)
    own = vars(module)
    assert list(own["_modules"]) == ["inner"]
    assert set(own["_parameters"]) == {"weight", "bias"}
    assert set(own["_buffers"]) == {"running_mean", "running_var", "num_batches_tracked"}


@relies_on("PreTrainedModel._hf_peft_config_loaded")
def test_a_model_says_whether_peft_is_in_it_under_a_name_of_its_own():
    assert tiny_llama()._hf_peft_config_loaded is False


@relies_on("OpOverload._schema", "aten._to_copy")
def test_an_operation_knows_its_name_and_whether_it_returns_a_view():
    view, copy = torch.ops.aten.view.default._schema, torch.ops.aten._to_copy.default._schema
    assert (view.name, copy.name) == ("aten::view", "aten::_to_copy")
    assert view.returns[0].alias_info is not None
    assert copy.returns[0].alias_info is None
