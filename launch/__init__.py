"""Starts this project's commands on one machine, Slurm, Kubernetes or Docker."""
