"""One engine made of many: replicas of an engine, each in a process of its own that Ray places and watches.

`engine` is the contracts.Engine that the rest of medbench sees; `replica` runs inside each process, around an ordinary
engine. `dispatch` decides who is asked what, and what becomes of the requests of a replica that dies; `agreement` finds
replicas that do not serve what the others serve; `shipping` copies weights to nodes that lack them. `cluster` finds or
starts Ray, `guard` ends it, and `placement` shares out its GPUs. Others use `engine.ReplicatedEngine`.
"""
