"""How good answers are: protocol, metrics, floors to beat, evaluation of a locator, and the report.

Begin with `evaluate`.
"""
