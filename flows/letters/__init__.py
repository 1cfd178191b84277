"""Dead letters for people: chosen, listed, sent back."""
