"""What the preference-conditioned adapters share: the live preference, the PEFT layer and model, reading a folder."""

from trimtab.rewards.conditioned.live import Conditions, conditioning, preference, set_preference

__all__ = ["Conditions", "conditioning", "preference", "set_preference"]
