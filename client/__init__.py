"""What runs inside a hospital: data in, local training, what may leave."""
