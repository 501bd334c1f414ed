"""Settings by hardware: what a job sets on which machine, and why. Nothing here imports torch or DeepSpeed."""
