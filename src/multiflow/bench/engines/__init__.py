"""Where cells are computed: in this process, in several local ones, on a Ray cluster, by Slurm."""
