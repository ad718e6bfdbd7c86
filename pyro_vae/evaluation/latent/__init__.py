"""What the latents carry."""
