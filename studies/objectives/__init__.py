"""The parts of ``studies/two_objectives.py``: data, plan, guides, ranking, answers, report."""
