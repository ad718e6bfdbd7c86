"""The parts of a model, built from sizes and names: nets, likelihoods, priors, posteriors."""
