"""PanoGAN: generates street views from satellite images. Begin with `model`."""
