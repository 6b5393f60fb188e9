"""Networks for images and sequences as torch modules: sizes as arguments, every layer one that can be private."""
