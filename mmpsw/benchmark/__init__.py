"""What sampling costs, counted and measured beside what peers cost."""
