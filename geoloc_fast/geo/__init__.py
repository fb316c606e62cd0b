"""Positions on the earth: distances, UTM, Web Mercator, regions, positions in Parquet.

This room uses no other room. Begin with `sphere`.
"""
