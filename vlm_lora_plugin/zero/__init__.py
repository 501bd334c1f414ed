"""DeepSpeed's ZeRO: settings for the hardware, and several processes that cannot silently differ."""
