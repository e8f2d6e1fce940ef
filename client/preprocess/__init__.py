"""What may be done to a volume before it becomes a cube: skull stripping, N4, registration, a standard intensity scale."""
