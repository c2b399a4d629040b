"""engine/averaging."""
