"""Training on this machine: the process launcher, the data check, the trainer, and the models."""

from fm_local.scanning import scan_once

scan_once()
