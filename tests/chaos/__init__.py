"""What clusters do to jobs, done to chains on a real Slurm on one machine: fault by fault, and over hours."""
