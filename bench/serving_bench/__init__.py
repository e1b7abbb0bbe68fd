"""The pieces of bench/serving.py."""
