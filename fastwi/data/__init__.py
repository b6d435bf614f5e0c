"""Datasets, resident on the device or streamed from the disk: card, images, SGD noise and augmentation."""
