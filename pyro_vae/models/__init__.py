"""Model families, one a file; none imports another."""
