"""The loop round the one step: jobs (what trains, and at which rate), optimizers, evaluation, checkpoints, resuming."""
