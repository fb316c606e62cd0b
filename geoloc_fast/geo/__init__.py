"""Positions on the earth: distances, UTM, Web Mercator, regions, positions in Parquet.

Knows nothing of the other rooms. Begin with `sphere`.
"""
