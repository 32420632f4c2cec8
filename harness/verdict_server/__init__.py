"""Which checkpoints do other programs ask about, and what is answered?

`queue` keeps on disk what was accepted and what came of it; `judge` works it off in one warm engine; `server` takes
requests and shows the state on this machine's own address. `medbench watch --serve` joins the three.
"""
