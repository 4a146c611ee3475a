"""What a run says of itself, while it trains, at its end, and before it starts."""
