"""What runs at the coordinator: rounds, aggregation, checkpoints, the report."""
