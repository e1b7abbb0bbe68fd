"""What the preference-conditioned adapters share: the live preference, the PEFT layer and model, reading a folder."""

from trimtab.rewards.conditioned.live import Conditions, conditioning, preference, set_preference
from trimtab.rewards.conditioned.strength import condition_input

__all__ = ["Conditions", "condition_input", "conditioning", "preference", "set_preference"]
