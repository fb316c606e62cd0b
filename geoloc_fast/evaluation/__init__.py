"""How good are the answers: protocol, metrics, floors to beat, evaluation of a locator, and the report.

Begin with `evaluate`.
"""
