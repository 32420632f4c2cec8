"""What is on the Hub, at which commit, and why may it not be read?

`repository` turns the name of a model into a folder and that of a data set into rows; `faults` turns what the Hub's
client raises into one line. Others use `repository.Repository` and its functions, and `faults.explained`.
"""
