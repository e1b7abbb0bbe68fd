"""The parts of ``studies/one_objective.py``: plan, guides, answers, numbers, report."""
