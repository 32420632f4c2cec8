"""How a question is asked and how its reply is read."""
