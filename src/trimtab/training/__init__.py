"""Training a guide: config, losses, collator, trainer."""

from trimtab.training.config import TrainConfig
from trimtab.training.losses import preference_loss
from trimtab.training.run import TrainResult, train

__all__ = ["TrainConfig", "TrainResult", "preference_loss", "train"]
