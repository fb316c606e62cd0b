"""From image files to arrays: decode, read EXIF, crop satellite images, reproject photos, calibrate, augment.

This room may use the operators and `geo`, but no manifest and no model. Begin with `decode`.
"""
