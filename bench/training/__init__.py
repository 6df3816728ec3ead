"""Parts of the training run behind ``bench/train_small_unet.py``."""
