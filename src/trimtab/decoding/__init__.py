"""How a next token is chosen: the rule that combines logits, sampling, stop strings, and the oracle tests trust."""
