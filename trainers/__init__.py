"""Trainer plugins (SFT, GRPO, any command); each publishes checkpoints in a folder, and the loop gates them."""

if __name__ != "medbench.trainers":
    raise ImportError("import this as medbench.trainers: a second copy under another name would share no state with it")
