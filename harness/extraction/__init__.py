"""What a reply answered."""
