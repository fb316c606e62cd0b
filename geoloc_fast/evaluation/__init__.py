"""Measure answers: protocol, metrics, simple methods to compare with, evaluation of a locator, and its report.

This room may use regions, cities and locators; it does not train. Begin with `evaluate`.
"""
