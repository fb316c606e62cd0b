"""Work on a region before it is searched: import imagery, prepare, synthesize street views, encode places, show.

This room may use manifests, models through their contract, and the index. Begin with `prepare`.
"""
