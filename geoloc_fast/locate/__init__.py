"""From a query to an answer: locator, candidates, confidence, and output formats.

This room may use the index, and models through their contract; it does not read a region's
imagery. Begin with `locator`.
"""
