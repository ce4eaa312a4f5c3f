"""Segmentation networks: models, augmentation, training, prediction and evaluation."""

import os

# Albumentations asks a package index for a newer release whenever it is imported, unless told not
# to before; no part of this project needs the network.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
