"""What a network costs and sees, from its traced program: mult-adds, memory, receptive fields."""
