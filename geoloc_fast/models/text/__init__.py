"""Descriptions as queries: text encoder, physical descriptors, and the model that combines them.

Begin with `model`.
"""
