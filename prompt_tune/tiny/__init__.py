"""`tiny`, the model that ships with the package: its weights, its pretraining, and the demo."""
