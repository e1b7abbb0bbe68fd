"""Training a guide on preferences: configuration, losses, collator, trainer."""
