"""Training on this machine: the process launcher, the data check, the trainer, and the models."""
