"""One recipe per kind of model: its data, step, evaluation and optimiser groups.

Begin with `text`, the shortest.
"""
