"""The log-likelihood to a tolerance: bounds that look for their own proposal, and say whether they hold."""
