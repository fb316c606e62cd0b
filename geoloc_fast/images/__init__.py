"""Image files to arrays: decoding, EXIF, storage, cylindrical columns, satellite squares, calibration, augmentation.

Knows the operators and `geo`, no manifest and no model. Begin with `decode`.
"""
