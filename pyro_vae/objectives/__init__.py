"""What training minimises, by name: a loss in nats per datum with the gradient estimator that the name promises."""
