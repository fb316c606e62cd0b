"""Manifests (tables of places and photos), readers that convert other formats to manifests, and torch datasets.

This room may use images and positions, but no model. Begin with `manifest`.
"""
