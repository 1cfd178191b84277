"""Examples in the order of learning, the models that learn from them, and how well they do."""
