"""PanoGAN: street views of satellite images. Begin with `model`."""
