"""One training job, from a model folder and a data file to an adapter on disk: what ``vlm-lora train`` runs."""

from vlm_lora_plugin.job.train_job import TrainJob

__all__ = ["TrainJob"]
