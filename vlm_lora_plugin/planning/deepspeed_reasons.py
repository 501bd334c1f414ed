"""Why each DeepSpeed key is there; ``docs/reference/deepspeed.md`` prints this table."""

from __future__ import annotations

REASONS: dict[str, str] = {
    "train_micro_batch_size_per_gpu": "The framework fills in `per_device_train_batch_size`, so that both agree.",
    "gradient_accumulation_steps": "The framework fills in its own value, so that both agree.",
    "train_batch_size": "The framework fills in the product over all devices.",
    "gradient_clipping": "The framework fills in `max_grad_norm`; DeepSpeed clips, not the Trainer.",
    "zero_allow_untested_optimizer": (
        "The optimizer is the Trainer's AdamW with the recipe's learning-rate groups; DeepSpeed accepts "
        "optimizers that are not its own only so."
    ),
    "bf16.enabled": (
        "The framework fills in its `bf16`; false where the device has no bf16, so that `bf16=True` is an error "
        "rather than an emulation."
    ),
    "fp16.enabled": "Only on devices without bf16. The framework fills in its `fp16`.",
    "fp16.loss_scale": "0: dynamic loss scaling; fp16 gradients underflow without.",
    "fp16.initial_scale_power": "The first scale is 2^16, as in the published scripts of all three families.",
    "fp16.loss_scale_window": "Steps without overflow after which the scale doubles.",
    "fp16.hysteresis": "Overflows that are borne before the scale halves.",
    "fp16.min_loss_scale": "The scale never falls below 1.",
    "zero_optimization.stage": (
        "0 shards nothing, 1 AdamW's state, 2 gradients too, 3 weights too; the table below says which and why."
    ),
    "zero_optimization.overlap_comm": (
        "ZeRO-2: reduces while the backward pass goes on, for the memory of a second bucket. ZeRO-3 on small "
        "devices: off, the memory is worth more."
    ),
    "zero_optimization.contiguous_gradients": (
        "Gradients are copied into one buffer as they come, so that memory does not fragment."
    ),
    "zero_optimization.reduce_scatter": "Each device is sent its own part of the averaged gradients alone.",
    "zero_optimization.reduce_bucket_size": (
        "Elements reduced at a time: an integer, because `auto` is computed from a top-level `hidden_size` that "
        "nested configs lack, and fails. ZeRO-3: 4096^2, what `auto` gives 7B models. ZeRO-2: the published 2e8, "
        "or 4096^2 where fewer elements than that learn."
    ),
    "zero_optimization.allgather_bucket_size": "ZeRO-2: elements gathered at a time after a step; as the bucket above.",
    "zero_optimization.stage3_prefetch_bucket_size": (
        "Elements fetched ahead: 0.9 x 4096^2, what `auto` gives 7B models."
    ),
    "zero_optimization.stage3_param_persistence_threshold": (
        "Tensors up to this many elements stay whole on each device. 40960 is what `auto` gives 7B models; a "
        "family with many small LoRA tensors raises it to hold them: Monkey to the largest of its tower's. The other "
        "families' LoRA is gathered with the layer that it belongs to."
    ),
    "zero_optimization.stage3_max_live_parameters": (
        "Elements that stay gathered: 2e8 are 0.37 GiB in 16 bit; the default of 1e9 would be 1.9 GiB of a 24 GiB "
        "device."
    ),
    "zero_optimization.stage3_max_reuse_distance": "As above: nothing is kept for use that far away.",
    "zero_optimization.stage3_gather_16bit_weights_on_model_save": (
        "transformers before 5.0 saves empty tensors without it."
    ),
    "zero_optimization.offload_param.device": "Only with `offload`: shards of the weights stay in host memory.",
    "zero_optimization.offload_param.pin_memory": (
        "Pinned memory is copied without a detour; it cannot be swapped, so it is compared with `host_memory`."
    ),
    "zero_optimization.offload_optimizer.device": (
        "Only with `offload`, and only where a billion elements or more learn: AdamW's state of LoRA alone is a "
        "quarter GiB or so, not worth the traffic nor the compiler it needs."
    ),
    "zero_optimization.offload_optimizer.pin_memory": "As for the weights.",
}
