"""Manifests, readers that make them of other formats, and torch datasets.

Knows images and the earth, no model. Begin with `manifest`.
"""
