"""Trainer plugins (SFT, GRPO, any command); each leaves checkpoints in a folder that the loop gates."""

if __name__ != "medbench.trainers":
    raise ImportError("import this as medbench.trainers: a second copy under another name would share no state with it")
