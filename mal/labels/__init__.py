"""Labels from people: what a chain asks for, what they answered, and what a round takes of it."""
