"""What does this completion answer?

`answer` is medbench's extractor, with its wording in `patterns`; `open_answer` is the one for questions without
options, whose answers `quantity` writes and compares; `published` holds the extractors of published scorers; `thinking`
separates reasoning from the answer. Others use `answer.extract`, `published.EXTRACTORS`, `quantity` and `thinking`.
"""
