"""Measuring what guidance gains and costs."""
