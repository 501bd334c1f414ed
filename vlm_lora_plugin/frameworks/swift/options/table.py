"""Every option of ``swift sft`` and what becomes of it under the tuner ``vlm_lora``.

None is ignored. An option has exactly one treatment; a test walks over Swift's own list and fails at one that
has none, as a new version of Swift may bring.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class LaidOver:
    """The value goes into the recipe where the recipe leaves the key open; where it does not, they must agree.

    What a preset says is open: it is a recommendation for a run that nobody has described yet.

    Attributes:
        key: The recipe's key, dotted.
    """

    key: str


@dataclass(frozen=True)
class OfRecipe:
    """The recipe alone decides; a value that was given must agree with it.

    Attributes:
        key: The recipe's key, dotted.
    """

    key: str


@dataclass(frozen=True)
class OfSelection:
    """What is selected in the model decides; a value that was given must describe the same.

    Attributes:
        key: The recipe's key that says it instead.
    """

    key: str


@dataclass(frozen=True)
class OfModel:
    """The family's own code decides; a value that was given must name what it does.

    Attributes:
        what: What it names, in words.
    """

    what: str


@dataclass(frozen=True)
class Only:
    """One value works; any other is refused.

    Attributes:
        instead: What to do instead, as a sentence.
        values: The values that work, the first of which is set; empty for Swift's own default.
    """

    instead: str
    values: tuple[Any, ...] = ()


@dataclass(frozen=True)
class OfTrainer:
    """Works as in transformers' Trainer, whose default also applies when the option is not given."""


@dataclass(frozen=True)
class Free:
    """Changes nothing in what is trained (folders, reports, hubs), or is read by this package itself."""


Treatment = LaidOver | OfRecipe | OfSelection | OfModel | Only | OfTrainer | Free


def _names(text: str) -> list[str]:
    return text.split()


def _table(groups: Iterable[tuple[Treatment, str]]) -> Mapping[str, Treatment]:
    return MappingProxyType({name: treatment for treatment, names in groups for name in _names(names)})


_RULES = "Say it in the recipe: components: {language: lora}, or rules."
_LORA_ONLY = "Leave it out: it belongs to another tuner."
_OWN_CODE = "Leave it out: the family's own code loads the model."
_OWN_DATA = "Leave it out: rows are read in the file's order and shuffled by the Trainer's sampler alone."
_OWN_PROMPT = "Leave it out: the family's processor writes the prompt."
_OWN_LOSS = "Leave it out: the loss is the mean over supervised tokens, as in the Trainer."
_WHOLE_ROWS = "Leave it out: rows are padded to the longest in the batch, as in the Trainer."
_OPTIM = "Set optimizer.learning_rate in the recipe; --optim chooses another plain optimizer."
_EVALUATION = "Evaluate afterwards with `vlm-lora` or `swift infer`; the loss is evaluated while training."

_GROUPS: tuple[tuple[Treatment, str], ...] = (
    *(
        (LaidOver(f"training.{name}"), name)
        for name in _names(
            "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps num_train_epochs "
            "max_steps logging_steps save_steps save_total_limit eval_steps dataloader_num_workers"
        )
    ),
    *(
        (LaidOver(f"optimizer.{name}"), name)
        for name in _names("lr_scheduler_type lr_scheduler_kwargs warmup_ratio max_grad_norm")
    ),
    (LaidOver("seed"), "seed"),
    (LaidOver("distributed.timeout"), "ddp_timeout"),
    (LaidOver("data.max_length"), "max_length"),
    (LaidOver("data.truncation_strategy"), "truncation_strategy"),
    (LaidOver("data.on_bad_sample"), "strict"),
    (LaidOver("data.loss_on"), "loss_scale"),
    (OfRecipe("seed"), "data_seed"),
    *((OfRecipe(f"optimizer.{name}"), name) for name in _names("weight_decay adam_beta1 adam_beta2 adam_epsilon")),
    *((OfRecipe(f"lora.{name}"), name) for name in _names("lora_alpha lora_dropout use_rslora use_dora")),
    (OfRecipe("lora.r"), "lora_rank"),
    (OfRecipe("gradient_checkpointing.language"), "gradient_checkpointing"),
    (OfRecipe("gradient_checkpointing.vision"), "vit_gradient_checkpointing"),
    (OfSelection("optimizer.learning_rate"), "learning_rate"),
    (OfSelection("optimizer.learning_rate.vision"), "vit_lr"),
    (OfSelection("optimizer.learning_rate.aligner"), "aligner_lr"),
    (OfSelection("components.language"), "freeze_llm"),
    (OfSelection("components.vision"), "freeze_vit"),
    (OfSelection("components.aligner"), "freeze_aligner"),
    (OfSelection("lora.target_modules"), "target_modules target_regex"),
    (OfSelection("rules"), "modules_to_save"),
    (Only("Set optimizer.warmup_ratio in the recipe."), "warmup_steps"),
    (
        Only(_RULES),
        "freeze_parameters freeze_parameters_regex freeze_parameters_ratio trainable_parameters "
        "trainable_parameters_regex target_parameters lora_bias",
    ),
    (
        Only("Leave it out: LoRA is drawn by key, as PEFT's default distribution.", ("true", True)),
        "init_weights",
    ),
    (Only("Leave it out: everything that is trained is fp32."), "lora_dtype"),
    (
        Only(_LORA_ONLY),
        "lora_ga_batch_size lora_ga_iters lora_ga_max_length lora_ga_direction lora_ga_scale "
        "lora_ga_stable_gamma fourier_n_frequency fourier_scaling boft_block_size boft_block_num "
        "boft_n_butterfly_factor boft_dropout vera_rank vera_projection_prng_key vera_dropout vera_d_initial "
        "adapter_act adapter_length adalora_target_r adalora_init_r adalora_tinit adalora_tfinal adalora_deltaT "
        "adalora_beta1 adalora_beta2 adalora_orth_reg_weight llamapro_num_new_blocks llamapro_num_groups "
        "reft_layer_key reft_layers reft_rank reft_intervention_type reft_args tuner_backend use_swift_lora "
        "lisa_activated_layers lisa_step_interval",
    ),
    (
        Only(_OPTIM),
        "optimizer lorap_lr_ratio use_galore galore_target_modules galore_rank galore_update_proj_gap galore_scale "
        "galore_proj_type galore_optim_per_parameter galore_with_embedding galore_quantization galore_proj_quant "
        "galore_proj_bits galore_proj_group_size galore_cos_threshold galore_gamma_proj galore_queue_size "
        "optim_target_modules",
    ),
    (OfModel("attention"), "attn_impl"),
    (
        Only(_OWN_CODE),
        "experts_impl new_special_tokens num_labels problem_type rope_scaling max_memory max_model_len "
        "local_repo_path init_strategy quant_method quant_bits hqq_axis bnb_4bit_compute_dtype "
        "bnb_4bit_quant_type bnb_4bit_use_double_quant bnb_4bit_quant_storage",
    ),
    (Only("Only causal language models are trained.", (None, "causal_lm")), "task_type"),
    (
        Only(_OWN_PROMPT),
        "agent_template norm_bbox template_backend response_prefix enable_thinking preserve_thinking "
        "add_non_thinking_prefix disable_ignore_empty_think",
    ),
    (Only(_OWN_PROMPT, (None, True)), "use_chat_template"),
    (Only("data.max_image_pixels in the recipe refuses larger images; none is scaled down."), "max_pixels"),
    (
        Only(_OWN_LOSS),
        "is_binary_loss_scale loss_type enable_dft_loss enable_channel_loss mrl_dims "
        "router_aux_loss_coef use_logits_to_keep use_liger_kernel liger_kernel_config",
    ),
    (
        Only(_WHOLE_ROWS),
        "padding_side padding_free packing packing_length packing_num_proc packing_strategy sequence_parallel_size "
        "group_by_length",
    ),
    (Only(_OWN_DATA, (False,)), "dataset_shuffle"),
    (
        Only(_OWN_DATA),
        "val_dataset_shuffle train_dataloader_shuffle streaming interleave_prob stopping_strategy "
        "shuffle_buffer_size columns disable_auto_column_mapping custom_dataset_info cached_dataset "
        "cached_val_dataset model_name model_author decision_drop_instructions decision_subsample_options "
        "decision_state_as_text decision_shuffle_fields sortish_sampler",
    ),
    (Only("Leave it out: each row is encoded when it is fetched.", (None, True)), "lazy_tokenize"),
    (Only("Write the rows to evaluate on into a file and give it as --val_dataset."), "split_dataset_ratio"),
    (Only("Set training.num_train_epochs in the recipe."), "max_epochs"),
    (
        Only(_EVALUATION),
        "predict_with_generate eval_metric acc_strategy eval_use_evalscope eval_dataset eval_dataset_args "
        "eval_limit eval_generation_config extra_eval_args generation_max_length generation_num_beams "
        "generation_config",
    ),
    (Only("Use --adapters CHECKPOINT to start from its weights alone."), "resume_only_model"),
    (Only("Only safetensors are written."), "safe_serialization"),
    (Only("Leave it out: an adapter is written whole by the Trainer."), "use_flash_ckpt"),
    (Only("Leave it out: an option that Swift does not know must not be passed over."), "ignore_args_error"),
    (Only("Start one process for each device: NPROC_PER_NODE."), "use_ray ray_exp_name device_groups"),
    (Only("Leave it out: the recipe's gradient_checkpointing decides."), "gradient_checkpointing_kwargs"),
    (Only("Leave it out: FSDP saves no adapter. Use --deepspeed zero3."), "fsdp fsdp_config"),
    (Only("Leave it out: tensor parallelism works for whole models only."), "deepspeed_autotp_size"),
    (
        OfTrainer(),
        "optim optim_args average_tokens_across_devices label_smoothing_factor bf16 fp16 "
        "bf16_full_eval fp16_full_eval tf32 torch_compile torch_compile_backend torch_compile_mode use_cache "
        "neftune_noise_alpha torch_empty_cache_steps auto_find_batch_size logging_strategy logging_first_step "
        "logging_nan_inf_filter include_num_input_tokens_seen eval_strategy eval_delay prediction_loss_only "
        "eval_on_start eval_do_concat_batches eval_use_gather_object eval_accumulation_steps include_for_metrics "
        "batch_eval_metrics save_only_model save_strategy load_best_model_at_end metric_for_best_model "
        "greater_is_better ignore_data_skip restore_callback_states_from_checkpoint full_determinism use_cpu "
        "accelerator_config parallelism_config dataloader_drop_last dataloader_pin_memory "
        "dataloader_persistent_workers dataloader_prefetch_factor dataloader_in_order label_names "
        "train_sampling_strategy length_column_name ddp_find_unused_parameters ddp_bucket_cap_mb "
        "ddp_broadcast_buffers ddp_static_graph deepspeed debug skip_memory_metrics",
    ),
    (
        Free(),
        "model model_type model_revision torch_dtype device_map template tuner_type adapters external_plugins "
        "custom_register_path model_kwargs resume_from_checkpoint dataset val_dataset system callbacks "
        "early_stop_interval output_dir add_version create_checkpoint_symlink logging_dir log_level "
        "log_level_replica log_on_each_node disable_tqdm report_to run_name project trackio_space_id "
        "trackio_bucket_id trackio_static_space_id save_on_each_node enable_jit_checkpoint push_to_hub hub_token "
        "hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision use_hf do_train do_eval "
        "do_predict local_rank ddp_backend remove_unused_columns max_shard_size check_model "
        "ds3_gather_for_generation zero_hpz_partition_size dataloader_multiprocessing_context dataset_num_proc "
        "load_from_cache_file download_mode load_args load_data_args enable_npu_model_patch max_new_tokens "
        "temperature top_k top_p repetition_penalty num_beams stream stop_words logprobs top_logprobs "
        "structured_outputs_regex swanlab_token swanlab_project swanlab_workspace swanlab_exp_name "
        "swanlab_notification_method swanlab_webhook_url swanlab_secret swanlab_sender_email "
        "swanlab_receiver_email swanlab_smtp_server swanlab_smtp_port swanlab_email_language swanlab_mode",
    ),
)

OPTIONS: Mapping[str, Treatment] = _table(_GROUPS)
"""Option -> treatment, for every field of Swift's ``SftArguments`` in the supported versions."""
