"""The pieces of ``bench/engine.py``: models and guides, the ways to write text, timing, memory, tables."""
