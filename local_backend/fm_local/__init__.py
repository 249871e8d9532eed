"""Training on this machine: the process launcher, the data check, the trainer, and the models."""

from fm_local.scanning import remember_scans

remember_scans()
