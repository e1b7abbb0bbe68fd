"""What a reward model is: how it scores an answer, how well it ranks pairs, the guide folder, the model card."""
