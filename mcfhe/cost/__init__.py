"""What a program costs, counted and predicted before anything runs."""
