"""What is shared by the trainers built on TRL and peft."""
