"""What does this completion answer?

`answer` is medbench's extractor, with its wording in `patterns`; `published` holds the extractors of published scorers;
`thinking` separates reasoning from the answer. Others use `answer.extract`, `published.EXTRACTORS` and `thinking`.
"""
