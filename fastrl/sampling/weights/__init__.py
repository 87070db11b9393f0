"""How the engine gets the trainer's weights, and the proof that it has them."""
