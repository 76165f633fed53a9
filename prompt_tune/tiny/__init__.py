"""`tiny`, the model that ships: its weights, how they were made, and the demo on it."""
