"""An edit as one hidden unit more: it answers to its subject's h and to nothing else."""
