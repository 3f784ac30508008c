"""Training on the policy's own samples: trainers, sequence KL, rollouts, and weights that move."""
